"""Segment ids: which tokens of a row belong together. B batch, T time.

Id 0 is padding: a token that changes no cache and no recurrent state. A token *starts* a segment when its id differs from
the last non-zero id before it; recurrent states and convolutions are reset there.
"""

import jax
import jax.numpy as jnp


def segment_starts(segment_ids_BT: jax.Array, last_B: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(valid_BT, start_BT, last_B): which tokens are not padding, which start a segment, and the last non-zero id.

    `last_B` is the last non-zero id before this call, 0 when there was none; a first segment then needs no reset.
    """
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


def last_valid(values_BT: jax.Array, valid_BT: jax.Array, default_B: jax.Array) -> jax.Array:
    """The value of each row's last valid token, or the row's default where no token is valid."""
    values_BT = jnp.concatenate([default_B[:, None], values_BT], axis=1)
    index_BT = jnp.where(valid_BT, jnp.arange(1, valid_BT.shape[1] + 1)[None], 0)
    return jnp.take_along_axis(values_BT, jnp.max(index_BT, axis=1, keepdims=True), axis=1)[:, 0]
