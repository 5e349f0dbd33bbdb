"""Softmax attention: one function, several implementations.

    o_t = sum_s exp(x_ts - lse_t) v_s    lse_t = log sum_s exp(x_ts)    x_ts = softcap(scale q_t k_s^T)

with sums over the keys s that query t sees. B batch, T time, S key time, H query heads, K kv heads, G query heads per kv head,
C head dim, E value dim.
"""

from numbers import Integral

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxeff.core.errors import nearest
from jaxeff.core.sharding import RULES, Rules
from jaxeff.ops.attention_block import Inputs, Options, attention_block
from jaxeff.ops.attention_kernels import attention_cudnn, attention_splash, why_not_cudnn, why_not_splash
from jaxeff.ops.attention_split import on_each_device, why_not_split

MASK_LIMIT = 4096  # longest sequence for which cuDNN's [T, T] mask of segments is chosen unasked


def attention(
    q_BTHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKE: jax.Array,
    *,
    causal: bool = True,
    window: tuple[int, int] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    segment_ids_BT: jax.Array | None = None,
    kv_segment_ids_BS: jax.Array | None = None,
    positions_BT: jax.Array | None = None,
    kv_positions_BS: jax.Array | None = None,
    impl: str | None = None,
    mesh=None,
    rules: Rules = RULES,
) -> jax.Array:
    """o [B, T, H, E] in v's dtype; query head h reads kv head h // G (Ainslie et al. 2023), keys are never repeated.

    A query at position t sees the key at position s iff (not causal, or s <= t), and (no window = (left, right), or
    t - left <= s <= t + right), and their segment ids are equal and not 0. Positions default to indices, which lets whole
    blocks be skipped; given ones (decoding from a cache) are any integers [B or 1, T] and [B or 1, S], and a key at a
    position below 0 is an empty slot. `kv_segment_ids_BS` defaults to `segment_ids_BT`. A query that sees nothing yields 0
    and has zero gradients. scale defaults to C**-0.5; softcap: s -> c tanh(s / c), before the mask (Gemma 2). Softmax is in
    float32.

    impl: "block" (any backend, O(T) memory), "splash" (TPU), "cudnn" (GPU, 16-bit), "reference" (O(T S) memory), or None:
    the fastest on the platform that the program is for (see `core.target`) whose conditions hold. mesh, rules (see
    `core.sharding`): of a program that is partitioned over several devices; each of them then runs a kernel on its own rows and
    heads, see `ops.attention_split`.

    Raises ValueError for shapes that do not fit, for a window that is no pair of integers from 0 or that looks ahead in
    causal attention, and for an `impl` that cannot serve this call, with the reason.
    """
    inputs = checked(Inputs(q_BTHC, k_BSKC, v_BSKE, positions_BT, kv_positions_BS, segment_ids_BT, kv_segment_ids_BS))
    options = options_of(inputs, causal, window, scale, softcap)
    impl = choose(inputs, options, mesh, rules) if impl is None else known(impl)
    if impl not in REASONS:
        return IMPLEMENTATIONS[impl](inputs, options)[0]
    if reason := why_not(impl, inputs, options, mesh, rules):
        raise ValueError(f"attention(impl={impl!r}) {reason}")
    return on_each_device(IMPLEMENTATIONS[impl], inputs, options, mesh, rules)[0]


def attention_with_lse(
    q_BTHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKE: jax.Array,
    *,
    causal: bool = True,
    window: tuple[int, int] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    segment_ids_BT: jax.Array | None = None,
    kv_segment_ids_BS: jax.Array | None = None,
    positions_BT: jax.Array | None = None,
    kv_positions_BS: jax.Array | None = None,
    impl: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(o [B, T, H, E], lse [B, T, H] in float32), lse = -inf for a query that sees nothing; arguments as in `attention`.

    Attention over disjoint sets i of keys merges exactly: lse = log sum_i exp(lse_i), o = sum_i exp(lse_i - lse) o_i. Both
    outputs have gradients; those of a query that sees nothing are zero. The partitioner can split both implementations.

    Raises ValueError as `attention` does, and for an `impl` other than "block" and "reference".
    """
    inputs = checked(Inputs(q_BTHC, k_BSKC, v_BSKE, positions_BT, kv_positions_BS, segment_ids_BT, kv_segment_ids_BS))
    options = options_of(inputs, causal, window, scale, softcap)
    if impl is None:
        impl = "reference" if q_BTHC.shape[1] == 1 else "block"
    elif known(impl) in REASONS:
        raise ValueError(
            f"attention_with_lse(impl={impl!r}): that kernel keeps the log-sum-exp to itself; write impl='block' or "
            "impl='reference'"
        )
    return IMPLEMENTATIONS[impl](inputs, options)


def attention_reference(q_BTHC, k_BSKC, v_BSKE, **options) -> jax.Array:
    """`attention` written out: all [T, S] scores at once. Same arguments."""
    return attention(q_BTHC, k_BSKC, v_BSKE, **(options | {"impl": "reference"}))


def known(impl: str) -> str:
    """`impl`, or ValueError if there is none of that name."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"no attention implementation is called {impl!r}; {nearest(impl, IMPLEMENTATIONS)}")
    return impl


def checked(x: Inputs) -> Inputs:
    """The inputs with segment ids of queries and keys, both or neither. Raises ValueError for shapes that do not fit."""
    (b, t, h, c), s, kv_heads = x.q.shape, x.k.shape[1], x.k.shape[2]
    if x.k.shape != (b, s, kv_heads, c) or x.v.shape[:3] != (b, s, kv_heads):
        raise ValueError(f"attention: keys {x.k.shape} and values {x.v.shape} do not fit queries {x.q.shape}")
    if h % kv_heads:
        raise ValueError(f"attention: {kv_heads} kv heads do not divide {h} query heads")
    if x.kv_segments is None:
        x = x._replace(kv_segments=x.segments)
    elif x.segments is None:
        raise ValueError("attention: kv_segment_ids_BS given without segment_ids_BT")
    named = {"segment_ids_BT": (x.segments, t), "kv_segment_ids_BS": (x.kv_segments, s)}
    named |= {"positions_BT": (x.positions, t), "kv_positions_BS": (x.kv_positions, s)}
    for name, (ids, length) in named.items():
        if ids is not None and ids.shape not in ((b, length), (1, length)):
            raise ValueError(f"attention: {name} has shape {ids.shape}, expected {(b, length)}")
    return x


def options_of(x: Inputs, causal: bool, window, scale: float | None, softcap: float | None) -> Options:
    """The static part of a call. Raises ValueError for a window that cannot be."""
    left, right = band(causal, window)
    scale = x.q.shape[-1] ** -0.5 if scale is None else scale
    return Options(left, right, scale, softcap, implicit=x.positions is None and x.kv_positions is None)


def band(causal: bool, window) -> tuple[int | None, int | None]:
    """(left, right): how far a query sees back and ahead, None without limit. Raises ValueError, see `attention`."""
    if window is None:
        return None, 0 if causal else None
    if isinstance(window, Integral):
        raise ValueError(
            f"attention: window must be (left, right), found {window}; a query that sees itself and w - 1 keys before it "
            f"has window=(w - 1, 0): write window=({max(window - 1, 0)}, 0)"
        )
    if len(window) != 2 or not all(isinstance(side, Integral) and side >= 0 for side in window):
        raise ValueError(f"attention: window must be (left, right), two integers of at least 0, found {window}")
    left, right = window
    if causal and right:
        raise ValueError(
            f"attention: causal=True sees nothing to the right, found window={window}: write window=({left}, 0), or "
            "causal=False for a band with two sides"
        )
    return left, right


def choose(x: Inputs, options: Options, mesh=None, rules: Rules = RULES) -> str:
    """The fastest implementation whose conditions hold."""
    t = x.q.shape[1]
    if t == 1:
        return "reference"  # one query against a cache: its scores are O(S), and its keys are best read where they lie
    if not why_not("splash", x, options, mesh, rules):
        return "splash"
    if not why_not("cudnn", x, options, mesh, rules) and (x.segments is None or t <= MASK_LIMIT):
        return "cudnn"
    return "block"


def why_not(kernel: str, x: Inputs, options: Options, mesh=None, rules: Rules = RULES) -> str | None:
    """Why this kernel cannot serve this call, or None."""
    return REASONS[kernel](x, options) or why_not_split(x, mesh, rules)


def visible(x: Inputs, options: Options) -> jax.Array:
    """bool [B or 1, T or 1, S]: which keys each query sees."""
    t, s = x.q.shape[1], x.k.shape[1]
    t_BT1 = (options.first + jnp.arange(t, dtype=jnp.int32)[None] if x.positions is None else x.positions)[:, :, None]
    s_B1S = (jnp.arange(s, dtype=jnp.int32)[None] if x.kv_positions is None else x.kv_positions)[:, None, :]
    see = s_B1S >= 0
    if options.right is not None:
        see = see & (s_B1S - t_BT1 <= options.right)
    if options.left is not None:
        see = see & (t_BT1 - s_B1S <= options.left)
    if x.segments is not None:
        s_seg = x.kv_segments[:, None, :]
        see = see & (x.segments[:, :, None] == s_seg) & (s_seg != 0)
    return see


def direct(x: Inputs, options: Options) -> tuple[jax.Array, jax.Array]:
    """(o, lse) with all scores at once, in float32. The reference, and the quick form for one query."""
    f32 = dict(preferred_element_type=jnp.float32)
    q_BTHC = (x.q.astype(jnp.float32) * options.scale).astype(x.q.dtype)
    q_BTKGC = rearrange(q_BTHC, "b t (k g) c -> b t k g c", k=x.k.shape[2])
    x_BKGTS = jnp.einsum("btkgc,bskc->bkgts", q_BTKGC, x.k, **f32)
    if options.softcap is not None:
        x_BKGTS = options.softcap * jnp.tanh(x_BKGTS / options.softcap)
    see = visible(x, options)[:, None, None]
    seen = jnp.any(see, -1, keepdims=True)
    # A finite stand-in for -inf: a row without keys stays finite, forward and backward, and is zeroed by the mask.
    x_BKGTS = jnp.where(see, x_BKGTS, -1e30)
    top_BKGT1 = jax.lax.stop_gradient(jnp.max(x_BKGTS, -1, keepdims=True))
    p_BKGTS = jnp.where(see, jnp.exp(x_BKGTS - top_BKGT1), 0.0)
    total_BKGT1 = jnp.where(seen, jnp.sum(p_BKGTS, -1, keepdims=True), 1.0)
    lse_BKGT1 = jnp.where(seen, top_BKGT1 + jnp.log(total_BKGT1), -jnp.inf)
    o_BTKGE = jnp.einsum("bkgts,bske->btkge", (p_BKGTS / total_BKGT1).astype(x.v.dtype), x.v, **f32)
    o_BTHE = rearrange(o_BTKGE, "b t k g e -> b t (k g) e").astype(x.v.dtype)
    return o_BTHE, rearrange(lse_BKGT1, "b k g t 1 -> b t (k g)")


IMPLEMENTATIONS = {
    "block": attention_block,
    "cudnn": attention_cudnn,
    "reference": direct,
    "splash": attention_splash,
}
REASONS = {"cudnn": why_not_cudnn, "splash": why_not_splash}
