"""What a model has read before the first token, learned instead of empty (prompt, prefix and state tuning).

B batch, D model, L repeats of a block, P virtual tokens of a prompt, S slots of a cache. Beside its own parameters such a model has

    start/prompt            [P, D]: embeddings that every text goes on from
    start/state/<path>      a decode state for all texts, by the leaves' paths in `init_state`: [L, ...] of a recurrent mixer's
                            leaf, [L, S, ...] of a cache, its first slots

The learned state comes first, then the model reads the prompt; texts go on from there, at position S + P. A learned start belongs
to the first text of a row: a second segment starts from nothing.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.core.tree import map_with_path, paths
from jaxeff.mixers.cache import Cache
from jaxeff.ops.segments import Row

START = "start"
# Sums that divide stay as they are, and so does the exponent that lets them count: RWKV-4 learns its numerator alone.
GIVEN = {"wkv/top": 0.0, "wkv/den": 0.0}


def learnable(state, slots: int) -> dict[str, tuple[int, ...]]:
    """path -> shape [L, ...] of what can be learned of a stack's state: floating-point leaves, and `slots` slots of each cache."""

    def shape(path: str, leaf) -> tuple[int, ...]:
        return (leaf.shape[0], *((slots,) if "/values/" in path else ()), *leaf.shape[3 if "/values/" in path else 2 :])

    floats = {path: x for path, x in paths(state).items() if jnp.issubdtype(x.dtype, jnp.inexact)}
    return {path: shape(path, x) for path, x in floats.items() if not path.endswith(tuple(GIVEN))}


def caches(state) -> dict[str, Cache]:
    """path -> cache."""
    return {path: x for path, x in paths(state, is_leaf=_whole).items() if isinstance(x, Cache)}


def length(start: Mapping[str, Any]) -> int:
    """S + P: how many positions lie before a text. Of arrays or Specs."""
    prompt = start.get("prompt")
    return _slots(start.get("state", {})) + (0 if prompt is None else prompt.shape[0])


def started(state, learned: Mapping[str, jax.Array]) -> Any:
    """An empty state of a batch with the learned values in it."""
    slots = _slots(learned)

    def one(path: str, old):
        if isinstance(old, Cache):
            own = {name: learned.get(f"{path}/values/{name}") for name in old.values}
            old = dataclasses.replace(old, row=_row(old.row, slots))
            return old if any(leaf is None for leaf in own.values()) else _prefixed(old, own, slots)
        if isinstance(old, Row):
            return _row(old, slots)
        if path in learned:
            return jnp.broadcast_to(learned[path][:, None].astype(old.dtype), old.shape)
        given = next((value for end, value in GIVEN.items() if path.endswith(end)), None)
        beside = path.rpartition("/")[0]
        return old if given is None or f"{beside}/num" not in learned else jnp.full_like(old, given)

    return map_with_path(one, state, is_leaf=_whole)


def _whole(x) -> bool:
    return isinstance(x, (Cache, Row))


def _slots(learned: Mapping[str, Any]) -> int:
    return next((x.shape[1] for path, x in learned.items() if "/values/" in path), 0)


def _row(row: Row, slots: int) -> Row:
    """The row after what was learned, which is of segment 1, as the first text of every row is."""
    return Row(jnp.full_like(row.segment, 1), jnp.full_like(row.position, slots))


def _prefixed(cache: Cache, values: Mapping[str, jax.Array], slots: int) -> Cache:
    """An empty cache [L, B, ...] whose first slots are written."""

    def put(old: jax.Array, new) -> jax.Array:
        return old.at[:, :, :slots].set(new)

    return dataclasses.replace(
        cache,
        values={name: put(old, values[name][:, None].astype(old.dtype)) for name, old in cache.values.items()},
        position=put(cache.position, jnp.arange(slots, dtype=jnp.int32)),
        segment=put(cache.segment, 1),
        written=jnp.full_like(cache.written, slots),
    )
