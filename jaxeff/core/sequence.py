"""Texts that are cut into slices, one on each device along the mesh axis `sequence`, in the order of time.

Inside `jax.shard_map` over that axis an operation sees its own slice alone. What it has to know of the slices before it is small: a
summary of each, say the affine map S -> M S + B that a recurrence makes of the state before it. Summaries are joined over devices
as a prefix sum is, by log2(n) exchanges between neighbours at distance 1, 2, 4, ... (Hillis and Steele 1986), so that all devices
scan their slices at once and none waits for the one before it.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

AXIS = "sequence"
Summary = TypeVar("Summary")


def sliced() -> bool:
    """Whether this is traced for a slice of the text."""
    return AXIS in jax.sharding.get_abstract_mesh().manual_axes


def number() -> jax.Array:
    """The number of this slice, from 0."""
    return jax.lax.axis_index(AXIS)


def count() -> int:
    """How many slices there are."""
    return jax.lax.axis_size(AXIS)


def before(summary: Summary, join: Callable[[Summary, Summary], Summary], nothing: Summary) -> Summary:
    """The summary of all slices before this one, `nothing` on the first. summary: of this slice. join(earlier, later): of both."""
    return _earlier(_upto(summary, join), 1, nothing)


def state_before(kept: jax.Array, added: jax.Array, state: jax.Array) -> jax.Array:
    """The state before this slice, of a recurrence by which a slice makes kept * S + added of the state S before. kept broadcasts
    to `added`; state: before the first slice."""

    def join(earlier, later):
        return earlier[0] * later[0], later[0] * earlier[1] + later[1]

    kept, added = before((kept, added), join, (jnp.ones_like(kept), jnp.zeros_like(added)))
    return kept * state + added


def decaying(
    form: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    log_kept: jax.Array,
    state: jax.Array,
    reset_BT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(y of this slice, the state after the last slice) of a recurrence that multiplies numbers of its state by gates and adds.

    form: (y, the state after this slice), given the state before this slice. log_kept: the sum of the logarithms of the slice's
    gates, broadcasts to the state. state: before the first slice. reset_BT: where it is zeroed; a row's reset keeps nothing.
    """
    kept, added = jnp.exp(log_kept), form(jnp.zeros_like(state))[1]
    if reset_BT is not None:
        resets_B = jnp.any(reset_BT, axis=1)
        kept = jnp.where(resets_B.reshape(-1, *(1,) * (kept.ndim - 1)), 0.0, kept)
    y, state = form(state_before(kept, added, state))
    return y, last(state)


def last(x: Summary) -> Summary:
    """What the last slice has, on each."""
    here = number() == count() - 1
    return jax.tree.map(lambda leaf: jax.lax.psum(jnp.where(here, leaf, jnp.zeros((), leaf.dtype)), AXIS), x)


def gathered(x: jax.Array, axis: int = 1) -> jax.Array:
    """The slices of all devices, one after the other along `axis`."""
    return jax.lax.all_gather(x, AXIS, axis=axis, tiled=True)


def _upto(summary, join):
    """The summary of all slices up to this one, itself included."""
    distance = 1
    while distance < count():
        summary = _where(number() >= distance, join(_earlier(summary, distance), summary), summary)
        distance *= 2
    return summary


def _earlier(x, distance: int, nothing=None):
    """What the slice `distance` before this one has; zeros, or `nothing`, where there is none."""
    pairs = [(i, i + distance) for i in range(count() - distance)]
    moved = jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, AXIS, pairs), x)
    return moved if nothing is None else _where(number() >= distance, moved, nothing)


def _where(condition, yes, no):
    return jax.tree.map(lambda y, n: jnp.where(condition, y, n), yes, no)
