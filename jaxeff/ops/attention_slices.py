"""Softmax attention of a text whose slices lie on the devices of the mesh axis `sequence`, see `core.sequence`. B batch, T time of
a slice, n slices, H query heads, K kv heads, C head dim, E value dim.

Each device attends with its own queries; two ways to meet the keys of the others:

"gather": one exchange before, then attention as on one device. Under a window it brings the keys within its reach, from
neighbours, left + T + right of them, and blocks outside of the window are left out. Otherwise it brings all n T keys and values to
every device, and computes all T x n T scores, of which causal attention needs half.

"ring" (Liu et al. 2023, "Ring attention with blockwise transformers"): keys and values go round, one slice at a time, n - 1
exchanges between neighbours (under a window only as far as it reaches), and what each slice gives is merged by its log-sum-exp in
float32. A device holds its own slice of them and the one that passes. The backward pass goes round again, the gradients of a slice
travelling with it, so that nothing is kept of a round but o and lse. Both ways move as many numbers in the forward pass; in the
backward pass the ring moves keys, values and their gradients in float32, where "gather" moves gradients alone.

In a causal text the first slice sees one slice and the last sees n. The ring therefore gives each device an early and a late half
slice for the time of the operation, d and 2n - 1 - d of 2n (zig-zag; Llama 3 team 2024, section 3.3.2), which two exchanges of
q, k, v before and o after bring about: at every exchange each device then has the same T x T / 2 scores to find, and no score is
found in vain. Where T is odd, or under a window, whose slices are equal work but for the first ones, slices stay as they are and
the ones that cannot be seen are passed on unread.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.core import sequence
from jaxeff.core.errors import lookup
from jaxeff.ops.attention import checked, options_of
from jaxeff.ops.attention_block import Inputs, Options, attention_block, blocks_of, gradients, merged, plan

Context = Literal["ring", "gather"]


def attention_slices(
    q_BTHC: jax.Array,
    k_BTKC: jax.Array,
    v_BTKE: jax.Array,
    *,
    causal: bool = True,
    window: tuple[int, int] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    segment_ids_BT: jax.Array | None = None,
    context: Context = "gather",
) -> tuple[jax.Array, jax.Array]:
    """(o [B, T, H, E], lse [B, T, H] in float32) of this slice, of `ops.attention.attention_with_lse` on the whole text, whose
    arguments the others are; order in the text is order in time. context: see the module docstring.

    To be called inside `jax.shard_map` over `sequence`. Raises ValueError as `attention` does, and for another `context`.
    """
    find = lookup(CONTEXTS, context, "way to meet the keys of other slices")
    inputs = checked(Inputs(q_BTHC, k_BTKC, v_BTKE, segments=segment_ids_BT))
    return find(inputs, options_of(inputs, causal, window, scale, softcap))


def gather(x: Inputs, options: Options) -> tuple[jax.Array, jax.Array]:
    """(o, lse) of this slice, by the keys of others gathered beforehand."""
    t, total = x.q.shape[1], x.q.shape[1] * sequence.count()
    if options.left is not None and options.left + t + options.right < total:
        return _within_reach(x, options)
    x = x._replace(**{name: sequence.gathered(leaf) for name, leaf in _keys(x).items()})
    if options.right is not None:
        x = x._replace(positions=_positions(sequence.number() * t, t), kv_positions=_positions(0, total))
        options = dataclasses.replace(options, implicit=False)
    return attention_block(x, options)


def _within_reach(x: Inputs, options: Options):
    """Attention to this slice and what the window reaches of its neighbours; what lies beyond the text has segment 0."""
    if x.segments is None:
        ones_BT = jnp.ones(x.q.shape[:2], jnp.int32)
        x = x._replace(segments=ones_BT, kv_segments=ones_BT)
    x = x._replace(**{name: _with_neighbours(leaf, options.left, options.right) for name, leaf in _keys(x).items()})
    return attention_block(x, dataclasses.replace(options, first=options.left))


def _with_neighbours(x_BT: jax.Array, left: int, right: int) -> jax.Array:
    """[B, left + T + right, ...]: this slice between the last `left` tokens before it and the first `right` after it."""
    t = x_BT.shape[1]
    before = [_shifted(x_BT[:, max(0, i * t - left) :], i) for i in range(_slices(left, t), 0, -1)]
    after = [_shifted(x_BT[:, : right - (i - 1) * t], -i) for i in range(1, _slices(right, t) + 1)]
    return jnp.concatenate([*before, x_BT, *after], axis=1)


def _shifted(x: jax.Array, distance: int) -> jax.Array:
    """x of the slice `distance` before this one, zeros where there is none."""
    n = sequence.count()
    pairs = [(i, i + distance) for i in range(n) if 0 <= i + distance < n]
    return jax.lax.ppermute(x, sequence.AXIS, pairs)


def ring(x: Inputs, options: Options) -> tuple[jax.Array, jax.Array]:
    """(o, lse) of this slice, by keys that go round."""
    balanced = options.left is None and options.right == 0 and x.q.shape[1] % 2 == 0
    if not balanced:
        return _round(x, options, False)
    o_BTHE, lse_BTH = _round(jax.tree.map(_zigzag, x), options, True)
    return _unzigzag(o_BTHE), _unzigzag(lse_BTH)


class Part(NamedTuple):
    """Some of the queries and of the keys of two slices, and how the ones see the others."""

    queries: slice
    keys: slice
    options: Options


ALL = slice(None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _round(x: Inputs, options: Options, balanced: bool):
    """(o, lse) of the queries of this device. balanced: it has an early and a late half slice."""
    return _forward(x, options, balanced)[0]


def _forward(x: Inputs, options: Options, balanced: bool):
    """((o, lse), residuals)."""
    o, lse = _attend(x, Part(ALL, ALL, options))
    found = o.astype(jnp.float32), lse
    for direction, hops in _routes(x, options):

        def hop(carry, i, direction=direction):
            keys, found = carry
            keys = _passed_on(keys, direction)
            case, y, parts = _cases(x, keys, options, balanced, direction * i)
            attend = [lambda part=part: found if part is None else merged(found, _attend(y, part)) for part in parts]
            return (keys, jax.lax.switch(case, attend)), None

        (_, found), _ = jax.lax.scan(hop, (_keys(x), found), jnp.arange(1, hops + 1))
    o_BTHE, lse_BTH = found[0].astype(x.v.dtype), found[1]
    return (o_BTHE, lse_BTH), (x, o_BTHE, lse_BTH)


def _backward(options: Options, balanced: bool, residuals, cotangents):
    """Cotangents of q, k and v; none for the integers."""
    x, *of_queries = *residuals, *cotangents
    dq, dk, dv = _pull(x, Part(ALL, ALL, options), of_queries)
    for direction, hops in _routes(x, options):

        def hop(carry, i, direction=direction):
            keys, dq, travelling = carry
            keys, travelling = _passed_on((keys, travelling), direction)
            case, y, parts = _cases(x, keys, options, balanced, direction * i)
            total = dq, *travelling

            def add(part):
                return total if part is None else jax.tree.map(jnp.add, total, _pull(y, part, of_queries))

            dq, *travelling = jax.lax.switch(case, [functools.partial(add, part) for part in parts])
            return (keys, dq, travelling), None

        start = _keys(x), dq, [jnp.zeros_like(dk), jnp.zeros_like(dv)]
        (_, dq, travelling), _ = jax.lax.scan(hop, start, jnp.arange(1, hops + 1))
        dk, dv = jax.tree.map(jnp.add, [dk, dv], _passed_on(travelling, -direction * hops))
    return (Inputs(dq.astype(x.q.dtype), dk.astype(x.k.dtype), dv.astype(x.v.dtype)),)


_round.defvjp(_forward, _backward)


def _routes(x: Inputs, options: Options) -> list[tuple[int, int]]:
    """(direction, hops) of each way that keys go: one round, or as far as a window reaches to either side."""
    last, t = sequence.count() - 1, x.q.shape[1]
    back, ahead = (last if side is None else _slices(side, t) for side in (options.left, options.right))
    if back + ahead >= last:
        return [(1, last)] if last else []
    return [(direction, hops) for direction, hops in ((1, back), (-1, ahead)) if hops]


def _cases(x: Inputs, keys: dict, options: Options, balanced: bool, distance: jax.Array):
    """(the number of the part that is to be computed, inputs, parts) for the keys of the slice `distance` before this one; None is
    a part with nothing to see."""
    t, here = x.q.shape[1], sequence.number()
    x = x._replace(**keys)
    if balanced:
        # All but the own halves are wholly before or wholly after each other, so that their positions need not be looked at.
        early, late, seen = slice(0, t // 2), slice(t // 2, t), dataclasses.replace(options, right=None)
        return jnp.where(distance <= here, 0, 1), x, (Part(ALL, early, seen), Part(late, ALL, seen))
    there = (here - distance) % sequence.count()
    after, seen = (there - here) * t, True
    if options.left is not None:
        seen &= -after - (t - 1) <= options.left
    if options.right is not None:
        seen &= after - (t - 1) <= options.right
    x = x._replace(positions=_positions(here * t, t), kv_positions=_positions(there * t, t))
    return jnp.where(seen, 1, 0), x, (None, Part(ALL, ALL, dataclasses.replace(options, implicit=False)))


def _attend(x: Inputs, part: Part):
    """(o, lse) of all queries; those that are not in the part see nothing."""
    o, lse = attention_block(_taken(x, part), part.options)
    t = x.q.shape[1]
    return _put(o, part.queries, t), _put(lse, part.queries, t, -jnp.inf)


def _pull(x: Inputs, part: Part, of_queries):
    """What the part adds to (dq, dk, dv), in float32. of_queries: o, lse and their cotangents, of the whole text."""
    (o, lse, do, dlse), y = (leaf[:, part.queries] for leaf in of_queries), _taken(x, part)
    size, stripes = plan(y.q.shape[1], y.k.shape[1], part.options)
    rows = blocks_of(lse[..., None], stripes[-1].end, size, y.k.shape[2])[..., 0]
    dq, dk, dv = gradients(part.options, (y, o, rows), (do, dlse))
    t = x.q.shape[1]
    return _put(dq, part.queries, t), _put(dk, part.keys, t), _put(dv, part.keys, t)


def _taken(x: Inputs, part: Part) -> Inputs:
    of_queries = ("q", "positions", "segments")
    some = {name: part.queries if name in of_queries else part.keys for name in x._fields}
    return Inputs(**{name: None if leaf is None else leaf[:, some[name]] for name, leaf in x._asdict().items()})


def _put(x_BT, some: slice, t: int, fill: float = 0.0):
    """x at the places `some` of T places, `fill` at the others."""
    start, stop, _ = some.indices(t)
    return jnp.pad(x_BT, ((0, 0), (start, t - stop), *((0, 0),) * (x_BT.ndim - 2)), constant_values=fill)


def _keys(x: Inputs) -> dict[str, jax.Array]:
    """What belongs to the keys, by the names of `Inputs`."""
    named = {"k": x.k, "v": x.v, "kv_segments": x.kv_segments}
    return {name: leaf for name, leaf in named.items() if leaf is not None}


def _positions(start, length: int) -> jax.Array:
    return (start + jnp.arange(length, dtype=jnp.int32))[None]


def _slices(reach: int, t: int) -> int:
    """How many neighbours lie within reach of a slice of T tokens on one side, at most all others."""
    return min(-(-reach // t), sequence.count() - 1)


def _passed_on(tree, distance: int):
    """What the slice `distance` before this one has; the last is before the first."""
    n = sequence.count()
    pairs = [(i, (i + distance) % n) for i in range(n)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, sequence.AXIS, pairs), tree)


def _zigzag(x_BT: jax.Array) -> jax.Array:
    """This device's early and late half slice of x [B, T, ...]: numbers d and 2n - 1 - d of 2n."""
    first, second = jnp.split(x_BT, 2, axis=1)
    # One of the two is the first half of some slice, the other a second half, of even and of odd number.
    first, second = (jax.lax.ppermute(x, sequence.AXIS, _homes(half)) for half, x in enumerate((first, second)))
    return jnp.concatenate(_swapped_at_odd(first, second), axis=1)


def _unzigzag(x_BT: jax.Array) -> jax.Array:
    """The inverse of `_zigzag`: the slice of x."""
    halves = enumerate(_swapped_at_odd(*jnp.split(x_BT, 2, axis=1)))
    back = [jax.lax.ppermute(x, sequence.AXIS, [(to, here) for here, to in _homes(half)]) for half, x in halves]
    return jnp.concatenate(back, axis=1)


def _homes(half: int) -> list[tuple[int, int]]:
    """(slice, the device to which its first (0) or second (1) half goes) of all slices."""
    n = sequence.count()
    return [(i, min(2 * i + half, 2 * n - 1 - (2 * i + half))) for i in range(n)]


def _swapped_at_odd(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    odd = sequence.number() % 2 == 1
    return jnp.where(odd, y, x), jnp.where(odd, x, y)


CONTEXTS = {"ring": ring, "gather": gather}
