"""Layers touch a weight only through `einsum`, `take` or `dense`.

A weight is an array, or a small registered pytree that knows how to do these three things (a low-rank pair, packed codes
with scales, an adapter beside its base). Layers never learn which one they got.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.core import matmul


class Weight(abc.ABC):
    """A weight that is not a plain array: a registered pytree whose leaves are arrays (or Specs).

    Only `dense` must be written. The others rest on it, and are overridden where a node can do better than become dense.
    """

    @abc.abstractmethod
    def dense(self, dtype) -> jax.Array:
        """The weight as a plain array; leading dimensions that number equal weights (layers, experts) stay."""

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`jnp.einsum(eqn, x, dense weight)` in x's dtype."""
        return matmul.einsum(eqn, x, self.dense(x.dtype))

    def take(self, ids: jax.Array, dtype) -> jax.Array:
        """Rows `ids` of the weight's first dimension: shape `ids.shape + weight.shape[1:]`."""
        return take(self.dense(dtype), ids, dtype)


class Terms(NamedTuple):
    """The letters of a product of x with a weight: of x, of the result, and of the weight's stacked, input and output axes."""

    x: str
    result: str
    stacked: str
    inputs: str
    outputs: str

    @property
    def forward(self) -> bool:
        """Whether the product takes inputs to outputs, these last in order: a layer. Else it may go the other way: a tied head."""
        return set(self.inputs) <= set(self.x) - set(self.result) and self.result.endswith(self.outputs)

    @property
    def backward(self) -> bool:
        """Whether the product takes outputs to inputs."""
        return set(self.outputs) <= set(self.x) - set(self.result) and self.result.endswith(self.inputs)

    def without(self, letters: str) -> str:
        """x's letters less these."""
        return "".join(letter for letter in self.x if letter not in letters)


def terms(eqn: str, n_stacked: int, n_in: int) -> Terms:
    """The letters of `eqn`, "x,w->result"."""
    operands, _, result = eqn.replace(" ", "").partition("->")
    x, _, w = operands.partition(",")
    return Terms(x, result, w[:n_stacked], w[n_stacked : n_stacked + n_in], w[n_stacked + n_in :])


def is_weight(x) -> bool:
    """Whether x is a weight node: `is_leaf` for trees in which a node counts as one weight."""
    return isinstance(x, Weight)


def einsum(eqn: str, x: jax.Array, w, dtype=None) -> jax.Array:
    """`jnp.einsum(eqn, x, w)`. The activation's dtype is the compute dtype, and the result's unless `dtype` asks for a wider one,
    in which products are then summed."""
    if is_weight(w):
        return w.einsum(eqn, x if dtype is None else x.astype(dtype))
    if dtype is None:
        return matmul.einsum(eqn, x, w)
    return jnp.einsum(eqn, x, w.astype(x.dtype), preferred_element_type=dtype)


def take(w, ids: jax.Array, dtype) -> jax.Array:
    """Rows of an embedding matrix, cast to `dtype`."""
    return w.take(ids, dtype) if is_weight(w) else jnp.take(w, ids, axis=0, mode="clip").astype(dtype)


def dense(w, dtype) -> jax.Array:
    """The weight as a plain array of `dtype`."""
    return w.dense(dtype) if is_weight(w) else w.astype(dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shifted(Weight):
    """A weight, array or node, whose products have a bias added: a head's, for who reads heads as one weight."""

    weight: Any
    bias: jax.Array

    def dense(self, dtype) -> jax.Array:
        """The weight alone."""
        return dense(self.weight, dtype)

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """Its product and the bias, whose axes are the result's last."""
        y = einsum(eqn, x, self.weight)
        return y + self.bias.astype(y.dtype).reshape((1,) * (y.ndim - self.bias.ndim) + self.bias.shape)
