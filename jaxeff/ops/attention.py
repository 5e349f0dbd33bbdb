"""Softmax attention: one function, several implementations.

    o_t = sum_s softmax_s(softcap(scale q_t k_s^T)) v_s        over the keys s that query t sees

B batch, T time, S key time, H query heads, K kv heads, G query heads per kv head, C head dim, E value dim.
"""

import jax
import jax.numpy as jnp

from jaxeff.core.errors import nearest
from jaxeff.ops.attention_block import Options, attention_block
from jaxeff.ops.attention_kernels import attention_cudnn, attention_splash, why_not_cudnn, why_not_splash

IMPLS = ("block", "cudnn", "reference", "splash")
MASK_LIMIT = 4096  # longest sequence for which cuDNN's [T, T] mask of segments is chosen unasked


def attention(
    q_BTHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKE: jax.Array,
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    segment_ids_BT: jax.Array | None = None,
    kv_segment_ids_BS: jax.Array | None = None,
    positions_BT: jax.Array | None = None,
    kv_positions_BS: jax.Array | None = None,
    impl: str | None = None,
) -> jax.Array:
    """o [B, T, H, E] in v's dtype; query head h reads kv head h // G (Ainslie et al. 2023), keys are never repeated.

    Query t sees key s iff (not causal, or position s <= position t), and (no window, or 0 <= position t - position s <
    window), and their segment ids are equal and not 0. Positions default to indices, which lets whole blocks be skipped;
    given ones (decoding from a cache) are any integers [B or 1, T] and [B or 1, S], and a key at a position below 0 is an
    empty slot. `kv_segment_ids_BS` defaults to `segment_ids_BT`. A query that sees nothing yields 0 and has zero gradients.
    scale defaults to C**-0.5; softcap: s -> c tanh(s / c), before the mask (Gemma 2). Softmax is in float32.

    impl: "block" (any backend, O(T) memory), "splash" (TPU), "cudnn" (GPU, 16-bit), "reference" (O(T S) memory), or None:
    the fastest whose conditions hold. Splash is a Pallas kernel, which the partitioner cannot split: with several devices it
    is chosen only inside `shard_map`.

    Raises ValueError for shapes that do not fit, and for an `impl` that cannot serve this call, with the reason.
    """
    segment_ids_BT, kv_segment_ids_BS = check(
        q_BTHC, k_BSKC, v_BSKE, window, segment_ids_BT, kv_segment_ids_BS, positions_BT, kv_positions_BS, impl
    )
    options = Options(
        causal=causal,
        window=window,
        scale=q_BTHC.shape[-1] ** -0.5 if scale is None else scale,
        softcap=softcap,
        implicit=positions_BT is None and kv_positions_BS is None,
    )
    arrays = (q_BTHC, k_BSKC, v_BSKE, positions_BT, kv_positions_BS, segment_ids_BT, kv_segment_ids_BS)
    if impl is None:
        impl = choose(arrays, options)
    elif impl in REASONS and (reason := REASONS[impl](*arrays, options)):
        raise ValueError(f"attention(impl={impl!r}) {reason}")
    return IMPLEMENTATIONS[impl](*arrays, options)


def attention_reference(q_BTHC, k_BSKC, v_BSKE, **options) -> jax.Array:
    """`attention` written out: all [T, S] scores at once. Same arguments."""
    return attention(q_BTHC, k_BSKC, v_BSKE, **(options | {"impl": "reference"}))


def check(q, k, v, window, segments, kv_segments, positions, kv_positions, impl):
    """Shapes that fit, or ValueError. Returns the segment ids of queries and keys: both or neither."""
    if impl is not None and impl not in IMPLS:
        raise ValueError(f"no attention implementation is called {impl!r}; {nearest(impl, IMPLS)}")
    (b, t, h, c), s, kv_heads = q.shape, k.shape[1], k.shape[2]
    if k.shape != (b, s, kv_heads, c) or v.shape[:3] != (b, s, kv_heads):
        raise ValueError(f"attention: keys {k.shape} and values {v.shape} do not fit queries {q.shape}")
    if h % kv_heads:
        raise ValueError(f"attention: {kv_heads} kv heads do not divide {h} query heads")
    if window is not None and window < 1:
        raise ValueError(f"attention: window must be at least 1, found {window}")
    if segments is not None and kv_segments is None:
        kv_segments = segments
    if kv_segments is not None and segments is None:
        raise ValueError("attention: kv_segment_ids_BS given without segment_ids_BT")
    named = {"segment_ids_BT": (segments, t), "kv_segment_ids_BS": (kv_segments, s)}
    named |= {"positions_BT": (positions, t), "kv_positions_BS": (kv_positions, s)}
    for name, (ids, length) in named.items():
        if ids is not None and ids.shape not in ((b, length), (1, length)):
            raise ValueError(f"attention: {name} has shape {ids.shape}, expected {(b, length)}")
    return segments, kv_segments


def choose(arrays, options: Options) -> str:
    """The fastest implementation for this backend whose conditions hold."""
    q, segments = arrays[0], arrays[5]
    if q.shape[1] == 1:
        return "reference"  # one query against a cache: its scores are O(S), and its keys are best read where they lie
    if not why_not_splash(*arrays, options):
        return "splash"
    if not why_not_cudnn(*arrays, options) and (segments is None or q.shape[1] <= MASK_LIMIT):
        return "cudnn"
    return "block"


def direct(q, k, v, positions, kv_positions, segments, kv_segments, options: Options) -> jax.Array:
    """All scores at once, in float32. The reference, and the quick form for one query."""
    (b, t, h, c), (_, s, kv_heads, _) = q.shape, k.shape
    f32 = dict(preferred_element_type=jnp.float32)
    q_BTKGC = (q.astype(jnp.float32) * options.scale).astype(q.dtype).reshape(b, t, kv_heads, h // kv_heads, c)
    x_BKGTS = jnp.einsum("btkgc,bskc->bkgts", q_BTKGC, k, **f32)
    if options.softcap is not None:
        x_BKGTS = options.softcap * jnp.tanh(x_BKGTS / options.softcap)
    t_BT1 = (jnp.arange(t, dtype=jnp.int32)[None] if positions is None else positions)[:, :, None]
    s_B1S = (jnp.arange(s, dtype=jnp.int32)[None] if kv_positions is None else kv_positions)[:, None, :]
    see = (s_B1S >= 0) & jnp.ones((1, t, 1), bool)
    if options.causal or options.window is not None:
        see = see & (s_B1S <= t_BT1)
    if options.window is not None:
        see = see & (t_BT1 - s_B1S < options.window)
    if segments is not None:
        see = see & (segments[:, :, None] == kv_segments[:, None, :]) & (kv_segments != 0)[:, None, :]
    see = see[:, None, None]
    # A finite stand-in for -inf: a row without keys stays finite, forward and backward, and is zeroed by the mask.
    p_BKGTS = jax.nn.softmax(jnp.where(see, x_BKGTS, -1e30), axis=-1)
    p_BKGTS = jnp.where(see, p_BKGTS, 0.0)
    o_BTKGE = jnp.einsum("bkgts,bske->btkge", p_BKGTS.astype(v.dtype), v, **f32)
    return o_BTKGE.reshape(b, t, h, -1).astype(v.dtype)


IMPLEMENTATIONS = {
    "reference": direct,
    "block": attention_block,
    "splash": attention_splash,
    "cudnn": attention_cudnn,
}
REASONS = {"splash": why_not_splash, "cudnn": why_not_cudnn}
