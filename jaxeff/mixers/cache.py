"""A ring of slots for whatever a mixer keeps of each token: keys and values, latents. B batch, T time, S slots.

Slots are filled in the order of the valid tokens, row by row; the ring begins anew when it is full, so that S slots hold the
last S tokens. Padding takes no slot.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.ops.segments import last_valid


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """values: a tree of arrays [B, S, ...]. position: int32 [B, S], -1 where a slot is empty; segment: int32 [B, S]. Of each
    row [B]: tokens written so far, the next position, and the last segment id."""

    values: Any
    position: jax.Array
    segment: jax.Array
    written: jax.Array
    next_position: jax.Array
    last_segment: jax.Array

    @property
    def slots(self) -> int:
        """S."""
        return self.position.shape[1]


def empty(shapes: Any, batch: int, slots: int, dtype) -> Cache:
    """A cache of `slots` slots. shapes: a tree of tuples, the shape of each value of one token."""
    values = jax.tree.map(
        lambda shape: jnp.zeros((batch, slots, *shape), dtype), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    none, zero = jnp.full((batch, slots), -1, jnp.int32), jnp.zeros((batch,), jnp.int32)
    return Cache(values, none, jnp.zeros_like(none), zero, zero, zero)


def next_positions(cache: Cache, segment_BT: jax.Array) -> jax.Array:
    """The positions of new tokens, which go on from the cache; int32 [B, T]."""
    return cache.next_position[:, None] + jnp.cumsum(segment_BT != 0, axis=1) - 1


def write(cache: Cache, values: Any, position_BT: jax.Array, segment_BT: jax.Array) -> Cache:
    """The cache with the tokens that are not padding in the next slots of the ring."""
    batch, slots = cache.position.shape
    valid_BT = segment_BT != 0
    order_BT = cache.written[:, None] + jnp.cumsum(valid_BT, axis=1) - 1
    written_B = cache.written + jnp.sum(valid_BT, axis=1)
    # Of several tokens for one slot the last one stays; out-of-range slots are dropped by the scatter.
    stays_BT = valid_BT & (order_BT >= written_B[:, None] - slots)
    slot_BT = jnp.where(stays_BT, order_BT % slots, slots)
    row_B1 = jnp.arange(batch)[:, None]

    def put(old, new):
        return old.at[row_B1, slot_BT].set(new.astype(old.dtype), mode="drop")

    position_BT = jnp.broadcast_to(position_BT, valid_BT.shape)
    return Cache(
        values=jax.tree.map(put, cache.values, values),
        position=put(cache.position, position_BT),
        segment=put(cache.segment, segment_BT),
        written=written_B,
        next_position=last_valid(position_BT + 1, valid_BT, cache.next_position),
        last_segment=last_valid(segment_BT, valid_BT, cache.last_segment),
    )


def beside(cache: Cache, values: Any, position_BT: jax.Array, segment_BT: jax.Array) -> Cache:
    """The old cache and the new tokens side by side, to be read only: [B, S + T, ...]."""

    def join(old, new):
        new = jnp.broadcast_to(new, (old.shape[0], *new.shape[1:]))
        return jnp.concatenate([old, new.astype(old.dtype)], axis=1)

    return dataclasses.replace(
        cache,
        values=jax.tree.map(join, cache.values, values),
        position=join(cache.position, position_BT),
        segment=join(cache.segment, segment_BT),
    )
