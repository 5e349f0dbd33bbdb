"""Attention by JAX's own kernels: splash attention (Pallas, TPU) and cuDNN's flash attention (GPU).

Each has a `why_not_*`: the reason that it cannot serve a call, or None. Both serve self-attention with implicit positions, and
return (o, None): they keep the log-sum-exp to themselves. Under a mesh they stand inside `ops.attention_split.on_each_device`.
B batch, T time, H query heads, K kv heads, C head dim, E value dim.
"""

import jax
import jax.numpy as jnp

from jaxeff.core.target import kernel_scope, platform
from jaxeff.ops.attention_block import KEPT, Inputs, Options

LANES = 128  # the TPU's vector width: splash needs sequences of a multiple of it


def not_self_attention(x: Inputs, options: Options) -> str | None:
    """The conditions that both kernels share."""
    if not options.implicit:
        return "takes positions that are indices only"
    if x.q.shape[1] != x.k.shape[1]:
        return f"needs as many queries as keys, found {x.q.shape[1]} and {x.k.shape[1]}"
    if x.segments is not x.kv_segments:
        return "needs the same segment ids for queries and keys"
    return None


def why_not_splash(x: Inputs, options: Options) -> str | None:
    """Why splash attention cannot serve this call."""
    if platform() != "tpu":
        return f"needs a TPU; the program is for a {platform()}"
    if x.q.shape[1] % LANES:
        return f"needs a length of a multiple of {LANES}, found {x.q.shape[1]}"
    return not_self_attention(x, options)


def attention_splash(x: Inputs, options: Options, interpret: bool = False) -> tuple[jax.Array, None]:
    """(o [B, T, H, E], None). Padding sees padding in the kernel (a softmax over nothing is not a number there), and is zeroed."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    t, h = x.q.shape[1], x.q.shape[2]
    if options.left is not None:
        mask = masks.LocalMask((t, t), window_size=(options.left, options.right), offset=0)
    else:
        mask = masks.FullMask((t, t)) if options.right is None else masks.CausalMask((t, t))
    block = next(size for size in (512, 256, LANES) if t % size == 0)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
        block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * h),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=options.softcap,
        residual_checkpoint_name=KEPT,
        interpret=interpret,
    )
    told = kernel_scope(4 * x.q.shape[0] * h * seen_pairs(t, options) * x.q.shape[3], x.q.shape[3])
    heads_first = (a.swapaxes(1, 2) for a in (scaled(x.q, options.scale), x.k, x.v))
    if x.segments is None:
        with told:
            return jax.vmap(kernel)(*heads_first).swapaxes(1, 2), None
    segments = jnp.broadcast_to(x.segments, x.q.shape[:2])
    run = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=splash.SegmentIds(q=ids, kv=ids)))
    with told:
        o_BHTE = run(*heads_first, segments)
    return zero_padding(o_BHTE.swapaxes(1, 2), segments), None


def seen_pairs(t: int, options: Options) -> int:
    """How many pairs of a query and a key the mask of self-attention lets through, segments aside."""
    left = t if options.left is None else options.left
    right = t if options.right is None else options.right
    return sum(min(t, i + right + 1) - max(0, i - left) for i in range(t))


def why_not_cudnn(x: Inputs, options: Options) -> str | None:
    """Why cuDNN's flash attention cannot serve this call."""
    if platform() != "gpu":
        return f"needs an NVIDIA GPU; the program is for a {platform()}"
    (q, k, v), device = x[:3], jax.devices()[0]
    if "rocm" in device.client.platform_version.lower():
        return "needs an NVIDIA GPU; this one is AMD's"
    if float(getattr(device, "compute_capability", "0.0")) < 8.0:
        return f"needs compute capability 8.0, found {getattr(device, 'compute_capability', 'none')}"
    if q.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
        return f"needs bfloat16 or float16 queries, keys and values, found {q.dtype}, {k.dtype} and {v.dtype}"
    if q.shape[-1] != v.shape[-1] or q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"needs equal head widths, a multiple of 8 up to 128, found {q.shape[-1]} and {v.shape[-1]}"
    if options.softcap is not None:
        return "has no soft cap"
    if options.right:
        return f"sees nothing to the right under a window, found {options.right} keys there"
    if x.segments is not None and q.shape[1] % 2:
        return f"needs an even length with segment ids, found {q.shape[1]}"
    return not_self_attention(x, options)


def attention_cudnn(x: Inputs, options: Options, implementation: str = "cudnn") -> tuple[jax.Array, None]:
    """(o [B, T, H, E], None). Segments become a [B, 1, T, T] mask; padding sees all of itself, and is zeroed."""
    mask = None
    if x.segments is not None:
        segments = jnp.broadcast_to(x.segments, x.q.shape[:2])
        mask = (segments[:, :, None] == segments[:, None, :])[:, None]
    o = jax.nn.dot_product_attention(
        x.q, x.k, x.v,
        mask=mask,
        scale=options.scale,
        is_causal=options.right == 0,
        local_window_size=None if options.left is None else (options.left, options.right),
        implementation=implementation,
    )  # fmt: skip
    return (o if mask is None else zero_padding(o, segments)), None


def scaled(q, scale: float):
    """q times the scale, rounded once."""
    return (q.astype(jnp.float32) * scale).astype(q.dtype)


def zero_padding(o_BTHE, segments_BT):
    """o with the rows of segment 0 set to zero."""
    return jnp.where((segments_BT != 0)[:, :, None, None], o_BTHE, jnp.zeros((), o_BTHE.dtype))
