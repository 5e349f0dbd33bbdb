"""A ring of slots for whatever a mixer keeps of each token: keys and values, latents. B batch, T time, S slots.

Slots are filled in the order of the valid tokens, row by row; the ring begins anew when it is full, so that S slots hold the
last S tokens, which is what a window needs; a mixer that sees all tokens asks `within`. Padding takes no slot.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.core import sequence
from jaxeff.ops.segments import Row, Tokens, empty_row


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """values: a tree of arrays [B, S, ...]. position: int32 [B, S], -1 where a slot is empty; segment: int32 [B, S]. written:
    tokens of each row so far, int32 [B]."""

    values: Any
    position: jax.Array
    segment: jax.Array
    written: jax.Array
    row: Row

    @property
    def slots(self) -> int:
        """S."""
        return self.position.shape[1]


def empty(shapes: Any, batch: int, slots: int, dtype) -> Cache:
    """A cache of `slots` slots. shapes: a tree of tuples, the shape of each value of one token."""
    values = jax.tree.map(
        lambda shape: jnp.zeros((batch, slots, *shape), dtype), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    none = jnp.full((batch, slots), -1, jnp.int32)
    return Cache(values, none, jnp.zeros_like(none), jnp.zeros((batch,), jnp.int32), empty_row(batch))


def write(cache: Cache, values: Any, tokens: Tokens, row: Row) -> Cache:
    """The cache with the tokens that are not padding in the next slots of the ring; `row` is the one after them. Those of a slice
    of a text (see `core.sequence`) are written with those of all others: each device has the cache after the text."""
    if sequence.sliced():
        whole = lambda tree: jax.tree.map(sequence.gathered, tree)  # noqa: E731
        values, tokens = whole(values), tokens._replace(segment=whole(tokens.segment), position=whole(tokens.position))
    batch, slots = cache.position.shape
    valid_BT = tokens.segment != 0
    order_BT = cache.written[:, None] + jnp.cumsum(valid_BT, axis=1) - 1
    written_B = cache.written + jnp.sum(valid_BT, axis=1)
    # Of several tokens for one slot the last one stays; out-of-range slots are dropped by the scatter.
    stays_BT = valid_BT & (order_BT >= written_B[:, None] - slots)
    slot_BT = jnp.where(stays_BT, order_BT % slots, slots)
    row_B1 = jnp.arange(batch)[:, None]

    def put(old, new):
        return old.at[row_B1, slot_BT].set(new.astype(old.dtype), mode="drop")

    return Cache(
        values=jax.tree.map(put, cache.values, values),
        position=put(cache.position, jnp.broadcast_to(tokens.position, valid_BT.shape)),
        segment=put(cache.segment, tokens.segment),
        written=written_B,
        row=row,
    )


def within(cache: Cache, y_BTD: jax.Array) -> jax.Array:
    """y, if no row was written more tokens than there are slots. Raises ValueError if one was; under `jit`, which cannot, its y is
    NaN."""
    over_B = cache.written > cache.slots
    if isinstance(over_B, jax.core.Tracer):
        return jnp.where(over_B.reshape(-1, *(1,) * (y_BTD.ndim - 1)), jnp.asarray(jnp.nan, y_BTD.dtype), y_BTD)
    if jnp.any(over_B):
        raise ValueError(f"{int(cache.written.max())} tokens do not fit a cache of max_len={cache.slots}")
    return y_BTD
