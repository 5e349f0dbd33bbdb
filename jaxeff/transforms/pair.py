"""A B, never formed but to be looked at: the pair of narrow factors that adapters and low-rank weights are made of.

A [*L, *I, R] and B [*L, R, *O] stand for a weight [*L, *I, *O]; L stacked, I inputs, O outputs, R rank. Either may be a node.
"""

import abc

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Spec, fan_in, stack, zeros
from jaxeff.core.weight import Terms, dense, einsum, take, terms
from jaxeff.transforms.node import Node


def product(t: Terms, x: jax.Array, a, b, middle=lambda x: x) -> jax.Array:
    """x A B where x comes in by the inputs, x B^T A^T where it comes in by the outputs (a tied head); `middle` is applied between.

    Only for a product that is one of these: `t.forward` or `t.backward`.
    """
    r = next(letter for letter in "rzyxwvutsq" if letter not in t.x + t.result + t.stacked + t.inputs + t.outputs)
    first, second = (f"{t.stacked}{t.inputs}{r}", a), (f"{t.stacked}{r}{t.outputs}", b)
    contracted = t.inputs
    if not t.forward:
        first, second, contracted = second, first, t.outputs
    narrow = f"{t.without(contracted)}{r}"
    return einsum(
        f"{narrow},{second[0]}->{t.result}", middle(einsum(f"{t.x},{first[0]}->{narrow}", x, first[1])), second[1]
    )


def whole(a, b, n_in: int, dtype) -> jax.Array:
    """A B as one array."""
    a, b = dense(a, dtype), dense(b, dtype)
    n, rank = a.ndim - n_in - 1, a.shape[-1]
    stacked, inputs, outputs = a.shape[:n], a.shape[n:-1], b.shape[n + 1 :]
    ab = jnp.matmul(a.reshape(*stacked, -1, rank), b.reshape(*stacked, rank, -1))
    return ab.reshape(*stacked, *inputs, *outputs)


def rows(a, b, ids: jax.Array, dtype) -> jax.Array:
    """Rows of A B, where A has one input dimension."""
    return jnp.tensordot(take(a, ids, dtype), dense(b, dtype), axes=1)


def pair(spec: Spec, rank: int, a_init=fan_in, b_init=zeros) -> tuple[Spec, Spec]:
    """The Specs of A and B for a weight."""
    axes = spec.axes[spec.n_stacked :]
    a = Spec((*spec.inputs, rank), (*axes[: spec.n_in], "rank"), a_init, n_in=spec.n_in)
    b = Spec((rank, *spec.outputs), ("rank", *axes[spec.n_in :]), b_init)
    for size, axis in zip(reversed(spec.stacked), reversed(spec.axes[: spec.n_stacked])):
        a, b = stack((a, b), size, axis=axis)
    return a, b


class UpdatedWeight(Node):
    """A base and a low-rank update, all of it in two factors; fields `base` and `n_in`."""

    stage = "adapter"

    @property
    @abc.abstractmethod
    def factors(self) -> tuple[jax.Array, jax.Array]:
        """A [*L, *I, R] and B [*L, R, *O], scales included."""

    def dense(self, dtype) -> jax.Array:
        """base + A B."""
        a, b = self.factors
        return dense(self.base, dtype) + whole(a, b, self.n_in, a.dtype).astype(dtype)

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """The base's product and that of the two narrow factors, in either direction."""
        a, b = self.factors
        t = terms(eqn, a.ndim - self.n_in - 1, self.n_in)
        if not (t.forward or t.backward):
            return super().einsum(eqn, x)
        return einsum(eqn, x, self.base) + product(t, x, a, b)

    def take(self, ids: jax.Array, dtype) -> jax.Array:
        """Rows of the base and of A times B."""
        return take(self.base, ids, dtype) + rows(*self.factors, ids, dtype)
