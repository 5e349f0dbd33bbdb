"""Several low-rank adapters over one base, chosen for each example of a batch. N adapters, R rank, B batch.

    y_b = x_b W + s_n (x_b A_n) B_n,    n = ids_b

The base's product is one for the whole batch, and so is that with the adapters, which are gathered by example.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError
from jaxeff.core.weight import Weight, einsum, take, terms
from jaxeff.transforms.lora import LoRAWeight
from jaxeff.transforms.node import Node
from jaxeff.transforms.plan import map_weights, weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MultiLoRAWeight(Node):
    """base + scale_n A_n B_n. base: any weight [*L, *I, *O]; a [*L, N, *I, R]; b [*L, N, R, *O]; scale [*L, N]; ids int32 [*L, B],
    None as long as nothing is chosen."""

    base: jax.Array | Weight
    a: jax.Array
    b: jax.Array
    scale: jax.Array
    ids: jax.Array | None = None
    n_in: int = dataclasses.field(default=1, metadata={"static": True})

    stage = "adapter"

    def dense(self, dtype) -> jax.Array:
        """Raises UserError: examples have different ones."""
        raise UserError("several adapters are no one matrix: take one of them, only(params, n)")

    def _chosen(self, batch: int) -> tuple[jax.Array, jax.Array]:
        """(A [B, *I, R], scaled B [B, R, *O]) of each example."""
        if self.ids is None:
            raise UserError("no adapters are chosen: params = choose(params, ids), one number for each example")
        if self.ids.shape != (batch,):
            raise UserError(f"adapters are chosen for {self.ids.shape[0]} examples, and the batch has {batch}")
        scale = self.scale[self.ids].reshape(-1, *(1,) * (self.b.ndim - 1))
        return self.a[self.ids], self.b[self.ids] * scale.astype(self.b.dtype)

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """The base's product and that of each example's adapter; x has examples along its first axis."""
        t = terms(eqn, 0, self.n_in)
        if self.scale.ndim > 1 or not (t.forward or t.backward):
            raise UserError(
                f"several adapters take part in a layer's product, inputs to outputs or back; {eqn!r} is none"
            )
        r = next(letter for letter in "rzyxwvutsq" if letter not in eqn)
        n, a, b = t.x[0], f"{t.inputs}{r}", f"{r}{t.outputs}"
        (first, contracted), second = ((a, t.inputs), b) if t.forward else ((b, t.outputs), a)
        narrow = f"{t.without(contracted)}{r}"
        low, high = self._chosen(len(x)) if t.forward else self._chosen(len(x))[::-1]
        inner = jnp.einsum(f"{t.x},{n}{first}->{narrow}", x, low.astype(x.dtype))
        return einsum(eqn, x, self.base) + jnp.einsum(f"{narrow},{n}{second}->{t.result}", inner, high.astype(x.dtype))

    def take(self, ids: jax.Array, dtype) -> jax.Array:
        """Rows of the base and of each example's A times its B; ids has examples along its first axis."""
        a, b = self._chosen(len(ids))
        narrow = jax.vmap(lambda a, ids: take(a, ids, dtype))(a, ids)
        return take(self.base, ids, dtype) + jnp.einsum("b...r,brd->b...d", narrow, b.astype(dtype))


def together(adapted: Sequence[Any]) -> Any:
    """One tree with all the adapters of several, which `LoRA` made over one base; that of the first is kept.

    Ranks may differ. Raises UserError where the trees have adapters on different weights, other shapes, or other bases.
    """
    if not adapted:
        raise UserError("together() needs at least one tree")
    known = [weights(tree) for tree in adapted]
    for i, other in enumerate(known[1:], 1):
        differing = sorted(set(known[0]) ^ set(other))
        if differing:
            raise UserError(f"trees 0 and {i} have other weights: {differing[0]} is in one of them only")

    def one(path: str, first):
        found = [tree[path] for tree in known]
        kinds = {type(w).__name__ for w in found}
        if len(kinds) > 1 or (
            isinstance(first, Node) and not isinstance(first, LoRAWeight) and first.stage == "adapter"
        ):
            raise UserError(
                f"{path} is {' and '.join(sorted(kinds))} in these trees, expected LoRAWeight in all or none"
            )
        bases = [jax.tree.leaves(w.base if isinstance(w, LoRAWeight) else w) for w in found]
        for i, base in enumerate(bases[1:], 1):
            if not all(a.shape == b.shape and bool(jnp.array_equal(a, b)) for a, b in zip(bases[0], base)):
                raise UserError(f"the adapters of trees 0 and {i} are for other bases: {path} differs")
        if not isinstance(first, LoRAWeight):
            return first
        n, rank = first.n_stacked, max(w.a.shape[-1] for w in found)

        def wide(x: jax.Array, axis: int) -> jax.Array:
            missing = [(0, 0)] * x.ndim
            missing[axis] = (0, rank - x.shape[axis])
            return jnp.pad(x, missing)

        scale = jnp.asarray([w.scale for w in found], jnp.float32)
        return MultiLoRAWeight(
            first.base,
            jnp.stack([wide(w.a, w.a.ndim - 1) for w in found], axis=n),
            jnp.stack([wide(w.b, n) for w in found], axis=n),
            jnp.broadcast_to(scale, (*first.a.shape[:n], len(found))),
            None,
            first.n_in,
        )

    return map_weights(one, adapted[0])


def choose(params: Any, ids_B: jax.Array) -> Any:
    """The tree with adapter `ids_B[i]` in force for example i of a batch. Raises UserError for a tree of no such adapters; numbers
    beyond the last are those of the last."""
    found = [w for w in weights(params).values() if isinstance(w, MultiLoRAWeight)]
    if not found:
        raise UserError("choose() needs a tree that together() made")
    ids_B = jnp.clip(jnp.asarray(ids_B, jnp.int32), 0, found[0].scale.shape[-1] - 1)

    def one(path: str, w):
        if not isinstance(w, MultiLoRAWeight):
            return w
        return dataclasses.replace(w, ids=jnp.broadcast_to(ids_B, (*w.scale.shape[:-1], len(ids_B))))

    return map_weights(one, params)


def only(params: Any, n: int) -> Any:
    """The tree with adapter n alone, as `LoRA` makes it with scale 1. Raises UserError for a number that there is not."""

    def one(path: str, w):
        if not isinstance(w, MultiLoRAWeight):
            return w
        axis, many = w.scale.ndim - 1, w.scale.shape[-1]
        if not 0 <= n < many:
            raise UserError(f"there is no adapter {n}: there are {many}, from 0")
        pick = lambda x: jnp.take(x, n, axis=axis)
        scale = pick(w.scale)
        b = pick(w.b)
        return LoRAWeight(
            w.base,
            pick(w.a),
            b * scale.reshape(*scale.shape, *(1,) * (b.ndim - scale.ndim)).astype(b.dtype),
            None,
            1.0,
            0.0,
            w.n_in,
        )

    return map_weights(one, params)
