"""Qwen2.5 (biases of q, k and v) and Qwen3 (norms of q and k instead)."""

import functools

from jaxeff.mixers.norm import RMSNorm
from jaxeff.models.presets.transformer import transformer
from jaxeff.ops.rope import Rope

_qwen2 = functools.partial(
    transformer, 151936, rope=Rope(1e6), norm=RMSNorm(1e-6), biases=("q", "k", "v"), tied=True, max_positions=32768
)
_qwen3 = functools.partial(
    transformer, 151936, head_dim=128, rope=Rope(1e6), norm=RMSNorm(1e-6), qk_norm=RMSNorm(1e-6), tied=True,
    max_positions=40960,
)  # fmt: skip

PRESETS = {
    "qwen2.5-0.5b": functools.partial(_qwen2, 896, 24, 4864, 14, 2),
    "qwen2.5-1.5b": functools.partial(_qwen2, 1536, 28, 8960, 12, 2, max_positions=131072),
    "qwen2.5-3b": functools.partial(_qwen2, 2048, 36, 11008, 16, 2),
    "qwen3-0.6b": functools.partial(_qwen3, 1024, 28, 3072, 16, 8),
    "qwen3-1.7b": functools.partial(_qwen3, 2048, 28, 6144, 16, 8),
    "qwen3-4b": functools.partial(_qwen3, 2560, 36, 9728, 32, 8),
}
