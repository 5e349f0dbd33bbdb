"""Attention in blocks of queries: O(T) memory in the forward and the backward pass, with its own VJP.

B batch, T time, S key time, H query heads, K kv heads, G query heads per kv head, C head dim, E value dim,
N blocks of queries, R rows of a block (G x queries, so that a group of heads shares one matrix product with its keys),
L keys that a block may see.

A block of queries meets all the keys it may see at once: its scores are [R, L], and only the output and the logarithm of
the softmax's denominator are kept. The backward pass computes the scores again (Dao et al. 2022, "FlashAttention"):

    p = exp(s - lse)    dv = p^T do    ds = p * (do v^T - rowsum(do * o) + dlse)    dq = ds k    dk = ds^T q

The keys [t - left, t + right] of query t are a band; blocks outside it are left out when positions are implicit.

Causal blocks see more and more keys, so they are grouped in stripes of one key length; a stripe is a loop, and the program
holds at most `MAX_STRIPES` of them. Blocks written out one after the other instead would all be live at once: XLA's CPU
scheduler runs the first product of every block, then the second of every block. (Measured at T = 1024: three times slower.)
`dk` and `dv` are accumulated transposed, [C, L], so that the large operand of each product is read along its rows, which
XLA's CPU product does five times faster; elsewhere it makes no difference.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jax.ad_checkpoint import checkpoint_name

KEPT = "attention"  # the name of outputs and log-sum-exps, for those who keep some of what is computed and compute the rest again
QUERIES = 64  # queries of a block, at most
MAX_STRIPES = 8  # pieces of the program with different key lengths; each is a loop over its blocks


@dataclasses.dataclass(frozen=True)
class Options:
    """What is static about a call. A query at t sees the keys at [t - left, t + right], None: without limit; right = 0 is
    causal, and a left side never stands without a right one. `implicit`: positions are indices, so that blocks can be
    skipped, and the first query stands at key number `first`."""

    left: int | None
    right: int | None
    scale: float
    softcap: float | None
    implicit: bool
    first: int = 0


class Inputs(NamedTuple):
    """The arrays of a call: q [B, T, H, C], k [B, S, K, C], v [B, S, K, E], and int ids or None: positions and segments
    [B or 1, T], kv_positions and kv_segments [B or 1, S]."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    positions: jax.Array | None = None
    kv_positions: jax.Array | None = None
    segments: jax.Array | None = None
    kv_segments: jax.Array | None = None


class Rows(NamedTuple):
    """One block of queries and what decides which keys it sees: q [B, K, R, C], position [B or 1, R], segment [B, R]."""

    q: jax.Array
    position: jax.Array
    segment: jax.Array | None


class Keys(NamedTuple):
    """Keys k [B, K, S, C], values v [B, K, S, E], position [B or 1, S], segment [B, S]."""

    k: jax.Array
    v: jax.Array
    position: jax.Array
    segment: jax.Array | None


class Stripe(NamedTuple):
    """Blocks [first, end) and the keys [start, start + length) of each; `starts` has one entry a block."""

    first: int
    end: int
    starts: tuple[int, ...]
    length: int


def plan(t: int, s: int, options: Options) -> tuple[int, list[Stripe]]:
    """(queries per block, stripes) for T queries and S keys."""
    n = -(-t // QUERIES)
    size = -(-t // n)
    size = -(-size // 8) * 8 if n > 1 else size
    n = -(-t // size)
    left, right, first_query = options.left, options.right, options.first
    if not options.implicit or right is None or right >= s:
        return size, [Stripe(0, n, (0,) * n, s)]
    if left is not None and left + size + right < s:
        # A band: every block sees equally many keys, further along each time.
        length = left + size + right
        starts = tuple(max(0, min(first_query + i * size - left, s - length)) for i in range(n))
        return size, [Stripe(0, n, starts, length)]
    # At least two blocks a stripe, so that each stays a loop: see the module docstring.
    count = max(1, min(n // 2, MAX_STRIPES))
    bounds = [n * i // count for i in range(count + 1)]
    stripes = zip(bounds[:-1], bounds[1:], strict=True)
    seen = lambda end: min(s, first_query + end * size + right)  # noqa: E731
    return size, [Stripe(first, end, (0,) * (end - first), seen(end)) for first, end in stripes]


def visible(rows: Rows, keys: Keys, options: Options) -> jax.Array:
    """bool [B or 1, 1, R, L]: which keys each row sees."""
    t_R1, s_1L = rows.position[:, None, :, None], keys.position[:, None, None, :]
    see = jnp.ones((), bool)[None, None, None, None] if options.implicit else s_1L >= 0
    if options.right is not None:
        see = see & (s_1L - t_R1 <= options.right)
    if options.left is not None:
        see = see & (t_R1 - s_1L <= options.left)
    if rows.segment is not None:
        s_seg = keys.segment[:, None, None, :]
        see = see & (rows.segment[:, None, :, None] == s_seg) & (s_seg != 0)
    return see


def scores(rows: Rows, keys: Keys, options: Options) -> tuple[jax.Array, jax.Array | None]:
    """(s, slope): float32 scores [B, K, R, L], -inf where nothing is seen, and the soft cap's derivative or None."""
    s = jnp.einsum("bkrc,bklc->bkrl", rows.q, keys.k, preferred_element_type=jnp.float32)
    slope = None
    if options.softcap is not None:
        tanh = jnp.tanh(s * (1 / options.softcap))
        s, slope = tanh * options.softcap, 1 - tanh * tanh
    return jnp.where(visible(rows, keys, options), s, -jnp.inf), slope


def block_forward(rows: Rows, keys: Keys, options: Options) -> tuple[jax.Array, jax.Array]:
    """(o [B, K, R, E], lse [B, K, R]) of one block; a row that sees nothing has o = 0 and lse = -inf."""
    s, _ = scores(rows, keys, options)
    top = jnp.max(s, -1, keepdims=True)
    top = jnp.where(top == -jnp.inf, 0.0, top)
    p = jnp.exp(s - top)
    total = jnp.sum(p, -1, keepdims=True)
    o = jnp.einsum("bkrl,bkle->bkre", p.astype(keys.v.dtype), keys.v, preferred_element_type=jnp.float32)
    o = o / jnp.where(total > 0, total, 1.0)
    return o.astype(keys.v.dtype), (top + jnp.log(total))[..., 0]


def block_backward(rows: Rows, keys: Keys, lse, delta, do, options: Options):
    """(dq [B, K, R, C], dk [B, K, C, L], dv [B, K, E, L]) in float32; delta = rowsum(do * o) - dlse."""
    f32 = dict(preferred_element_type=jnp.float32)
    s, slope = scores(rows, keys, options)
    lse = jnp.where(lse == -jnp.inf, 0.0, lse)  # exp(-inf - 0) = 0, where -inf - -inf is not a number
    p = jnp.exp(s - lse[..., None])
    dp = jnp.einsum("bkre,bkle->bkrl", do, keys.v, **f32)
    ds = p * (dp - delta[..., None])
    ds = (ds if slope is None else ds * slope).astype(rows.q.dtype)
    dv = jnp.einsum("bkrl,bkre->bkel", p.astype(do.dtype), do, **f32)
    dk = jnp.einsum("bkrl,bkrc->bkcl", ds, rows.q, **f32)
    dq = jnp.einsum("bkrl,bklc->bkrc", ds, keys.k, **f32)
    return dq, dk, dv


def blocks_of(x_BTHC, n: int, size: int, kv_heads: int):
    """[B, T, H, C] -> [N, B, K, R, C]; T is padded with zeros."""
    x = jnp.pad(x_BTHC, ((0, 0), (0, n * size - x_BTHC.shape[1]), (0, 0), (0, 0)))
    return rearrange(x, "b (n s) (k g) c -> n b k (g s) c", n=n, k=kv_heads)


def unblock(x_NBKRC, t: int, groups: int):
    """The inverse of `blocks_of`: [N, B, K, R, C] -> [B, T, H, C]."""
    return rearrange(x_NBKRC, "n b k (g s) c -> b (n s) (k g) c", g=groups)[:, :t]


def row_ids(ids_BT, n: int, size: int, groups: int, fill: int):
    """[B, T] -> [N, B, R]: the same number for each head of a group; T is padded with `fill`."""
    ids = jnp.pad(ids_BT, ((0, 0), (0, n * size - ids_BT.shape[1])), constant_values=fill)
    return repeat(ids, "b (n s) -> n b (g s)", n=n, g=groups)


def prepare(inputs: Inputs, options: Options):
    """(stripes, size, rows with a leading block axis, keys) of the arrays of a call."""
    q, k, v, positions, kv_positions, segments, kv_segments = inputs
    t, s, kv_heads, groups = q.shape[1], k.shape[1], k.shape[2], q.shape[2] // k.shape[2]
    size, stripes = plan(t, s, options)
    n = stripes[-1].end
    positions = options.first + jnp.arange(t, dtype=jnp.int32)[None] if positions is None else positions
    kv_positions = jnp.arange(s, dtype=jnp.int32)[None] if kv_positions is None else kv_positions
    scaled = (q.astype(jnp.float32) * options.scale).astype(q.dtype)
    rows = Rows(
        blocks_of(scaled, n, size, kv_heads),
        row_ids(positions, n, size, groups, -1),
        None if segments is None else row_ids(segments, n, size, groups, 0),
    )
    return stripes, size, rows, Keys(k.swapaxes(1, 2), v.swapaxes(1, 2), kv_positions, kv_segments)


def cut(keys: Keys, start, length: int) -> Keys:
    """The keys [start, start + length)."""
    if isinstance(start, int):
        stop = start + length
        return Keys(
            keys.k[:, :, start:stop], keys.v[:, :, start:stop], keys.position[:, start:stop],
            None if keys.segment is None else keys.segment[:, start:stop],
        )  # fmt: skip
    take = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, start, length, axis)  # noqa: E731
    segment = None if keys.segment is None else take(keys.segment, 1)
    return Keys(take(keys.k, 2), take(keys.v, 2), take(keys.position, 1), segment)


def add_at(total, part, start):
    """total[..., start : start + length] += part."""
    if isinstance(start, int):
        return total.at[..., start : start + part.shape[-1]].add(part)
    old = jax.lax.dynamic_slice_in_dim(total, start, part.shape[-1], total.ndim - 1)
    return jax.lax.dynamic_update_slice_in_dim(total, old + part, start, total.ndim - 1)


def over_blocks(body, carry, stripes, xs):
    """`carry, y = body(carry, x, start, length)` over all blocks, unrolled over stripes, scanned within; y stacked."""
    outs = []
    for stripe in stripes:
        mine = jax.tree.map(lambda x, a=stripe.first, b=stripe.end: x[a:b], xs)
        same = len(set(stripe.starts)) == 1
        if stripe.end - stripe.first == 1:
            carry, y = body(carry, jax.tree.map(lambda x: x[0], mine), stripe.starts[0], stripe.length)
            outs.append(jax.tree.map(lambda a: a[None], y))
            continue

        def step(carry, x_start, stripe=stripe, same=same):
            x, start = x_start
            return body(carry, x, stripe.starts[0] if same else start, stripe.length)

        carry, y = jax.lax.scan(step, carry, (mine, np.asarray(stripe.starts, np.int32)))
        outs.append(y)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def attention_block(inputs: Inputs, options: Options) -> tuple[jax.Array, jax.Array]:
    """(o [B, T, H, E], lse [B, T, H]); see `jaxeff.ops.attention.attention_with_lse`."""
    return forward(inputs, options)[0]


def forward(inputs: Inputs, options: Options):
    """((o, lse), residuals)."""
    stripes, _, rows, keys = prepare(inputs, options)
    t, groups = inputs.q.shape[1], inputs.q.shape[2] // inputs.k.shape[2]

    def body(carry, rows, start, length):
        return carry, block_forward(rows, cut(keys, start, length), options)

    _, (o, lse) = over_blocks(body, (), stripes, rows)
    o, lse = checkpoint_name(unblock(o, t, groups), KEPT), checkpoint_name(lse, KEPT)
    return (o, unblock(lse[..., None], t, groups)[..., 0]), (inputs, o, lse)


def backward(options: Options, residuals, cotangents):
    """Cotangents of q, k and v; none for the integers."""
    inputs, found = residuals[0], gradients(options, residuals, cotangents)
    return (Inputs(*(g.astype(like.dtype) for g, like in zip(found, inputs[:3], strict=True))),)


def gradients(options: Options, residuals, cotangents) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq, dk, dv) in float32, in the shapes of q, k and v. residuals: (inputs, o, lse in blocks). Where o and lse are those of
    more keys than the inputs hold, these are the parts of the gradients that the inputs' keys have in them."""
    (inputs, o, lse), (do, dlse_BTH) = residuals, cotangents
    q, k, v, *_ = inputs
    stripes, size, rows, keys = prepare(inputs, options)
    (b, t, h, _), (_, s, kv_heads, c), e = q.shape, k.shape, v.shape[-1]
    n = stripes[-1].end
    delta_BTH = jnp.sum(do.astype(jnp.float32) * o.astype(jnp.float32), -1) - dlse_BTH
    delta = blocks_of(delta_BTH[..., None], n, size, kv_heads)[..., 0]
    delta = jnp.where(lse == -jnp.inf, 0.0, delta)  # whatever a caller's arithmetic with lse = -inf sends back
    do = blocks_of(do, n, size, kv_heads)

    def body(carry, x, start, length):
        rows, lse, delta, do = x
        dq, dk, dv = block_backward(rows, cut(keys, start, length), lse, delta, do, options)
        return (add_at(carry[0], dk, start), add_at(carry[1], dv, start)), dq

    zero = lambda width: jnp.zeros((b, kv_heads, width, s), jnp.float32)  # noqa: E731
    (dk, dv), dq = over_blocks(body, (zero(c), zero(e)), stripes, (rows, lse, delta, do))
    dq = unblock(dq, t, h // kv_heads) * options.scale
    return dq, dk.transpose(0, 3, 1, 2), dv.transpose(0, 3, 1, 2)


attention_block.defvjp(forward, backward)


def merged(one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """(o [B, T, H, E], lse [B, T, H]) in float32, of attention to two disjoint sets of keys, each given as such a pair. A query
    that sees neither has o = 0, lse = -inf."""
    (one_o, one_lse), (other_o, other_lse) = one, other
    top_BTH = jax.lax.stop_gradient(jnp.maximum(one_lse, other_lse))
    top_BTH = jnp.where(jnp.isfinite(top_BTH), top_BTH, jnp.float32(0))
    p, r = jnp.exp(one_lse - top_BTH), jnp.exp(other_lse - top_BTH)
    o_BTHE = p[..., None] * one_o.astype(jnp.float32) + r[..., None] * other_o.astype(jnp.float32)
    total_BTH = p + r
    return o_BTHE / jnp.maximum(total_BTH, jnp.finfo(jnp.float32).tiny)[..., None], top_BTH + jnp.log(total_BTH)
