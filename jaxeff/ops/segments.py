"""Segment ids: which tokens of a row belong together. B batch, T time.

Id 0 is padding: a token that changes no cache and no recurrent state. A token *starts* a segment when its id differs from
the last non-zero id before it; recurrent states and convolutions are reset there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.core import sequence


class Row(NamedTuple):
    """What every state remembers of each row, int32 [B]: its last non-zero segment id, 0 before any, and the position of its
    next token."""

    segment: jax.Array
    position: jax.Array


class Tokens(NamedTuple):
    """What a mixer has to know of the tokens of one call.

    segment: int32 [B, T], None where a call without state has no ids. position: int32 [B or 1, T]. valid: which tokens are not
    padding; start: which ones start a segment after another one; bool [B, T], both None where there are no ids: all tokens are
    valid, and none starts.
    """

    segment: jax.Array | None
    position: jax.Array
    valid: jax.Array | None
    start: jax.Array | None


def empty_row(batch: int) -> Row:
    """Before the first token."""
    zero_B = jnp.zeros((batch,), jnp.int32)
    return Row(zero_B, zero_B)


def tokens(
    shape_BT: tuple[int, int],
    segment_ids_BT: jax.Array | None = None,
    position_BT: jax.Array | None = None,
    row: Row | None = None,
) -> tuple[Tokens, Row | None]:
    """(what the ids say of the tokens, the row after them), the latter None exactly when no row is passed.

    Without ids the segment of the row goes on. Without positions they count valid tokens from where the row stands, and without
    a row they are the indices. A first segment needs no reset, so its first token is no start. For a slice of a text (see
    `core.sequence`) all of it is said of its place in the text, and the row is the one after the last slice.
    """
    if not sequence.sliced():
        return _tokens(shape_BT, segment_ids_BT, position_BT, row)
    batch, time = shape_BT
    # Of the whole text, as ids and positions are small beside what is computed from them.
    whole = (None if x is None else sequence.gathered(x) for x in (segment_ids_BT, position_BT))
    found, row = _tokens((batch, time * sequence.count()), *whole, row)
    mine = lambda x: jax.lax.dynamic_slice_in_dim(x, sequence.number() * time, time, axis=1)  # noqa: E731
    return jax.tree.map(mine, found), row


def _tokens(shape_BT, segment_ids_BT, position_BT, row):
    batch, time = shape_BT
    index_1T = jnp.arange(time, dtype=jnp.int32)[None]
    if segment_ids_BT is None:
        if row is None:
            return Tokens(None, index_1T if position_BT is None else position_BT, None, None), None
        segment_BT = jnp.broadcast_to(jnp.maximum(row.segment, 1)[:, None], shape_BT)
        position_BT = row.position[:, None] + index_1T if position_BT is None else position_BT
        next_B = jnp.broadcast_to(position_BT[:, -1] + 1, (batch,))
        return Tokens(segment_BT, position_BT, None, None), Row(segment_BT[:, -1], next_B)

    before = empty_row(batch) if row is None else row
    valid_BT, start_BT, last_B = _starts(segment_ids_BT, before.segment)
    if position_BT is None:
        counted = row is not None
        position_BT = row.position[:, None] + jnp.cumsum(valid_BT, axis=1) - 1 if counted else index_1T
    found = Tokens(segment_ids_BT, position_BT, valid_BT, start_BT)
    if row is None:
        return found, None
    return found, Row(last_B, _last_valid(jnp.broadcast_to(position_BT + 1, shape_BT), valid_BT, row.position))


def zero_padding(x_BT: jax.Array, valid_BT: jax.Array | None) -> jax.Array:
    """x [B, T, ...] with zeros at padding."""
    if valid_BT is None:
        return x_BT
    valid = valid_BT.reshape(*valid_BT.shape, *(1,) * (x_BT.ndim - 2))
    return jnp.where(valid, x_BT, jnp.zeros((), x_BT.dtype))


def _starts(segment_ids_BT: jax.Array, last_B: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(valid_BT, start_BT, the last non-zero id [B]); `last_B` is that of before."""
    valid_BT = segment_ids_BT != 0
    ids_BT = jnp.concatenate([last_B[:, None], segment_ids_BT], axis=1)
    index_T = jnp.arange(ids_BT.shape[1])
    # Where the most recent non-padding token stands, at or before each place; column 0 is the state's own id.
    known = (ids_BT != 0) | (index_T == 0)[None]
    recent_BT = jax.lax.cummax(jnp.where(known, index_T[None], 0), axis=1)
    carried_BT = jnp.take_along_axis(ids_BT, recent_BT, axis=1)
    before_BT = carried_BT[:, :-1]
    start_BT = valid_BT & (before_BT != 0) & (segment_ids_BT != before_BT)
    return valid_BT, start_BT, carried_BT[:, -1]


def _last_valid(values_BT: jax.Array, valid_BT: jax.Array, default_B: jax.Array) -> jax.Array:
    """The value of each row's last valid token, or the row's default where no token is valid."""
    values_BT = jnp.concatenate([default_B[:, None], values_BT], axis=1)
    index_BT = jnp.where(valid_BT, jnp.arange(1, valid_BT.shape[1] + 1)[None], 0)
    return jnp.take_along_axis(values_BT, jnp.max(index_BT, axis=1, keepdims=True), axis=1)[:, 0]
