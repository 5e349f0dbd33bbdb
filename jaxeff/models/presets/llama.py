"""The Llama graph (Touvron et al. 2023), pre-norm, rotary GQA, gated MLP: small models that are made of it."""

import functools

from jaxeff.mixers.norm import RMSNorm
from jaxeff.models.presets.transformer import transformer
from jaxeff.ops.rope import Llama3, Rope

_LLAMA3 = Llama3(32.0, 1.0, 4.0, 8192)

PRESETS = {
    "llama-3.2-1b": functools.partial(
        transformer, 128256, 2048, 16, 8192, 32, 8, rope=Rope(500000.0, scaling=_LLAMA3), tied=True, max_positions=131072
    ),
    "llama-3.2-3b": functools.partial(
        transformer, 128256, 3072, 28, 8192, 24, 8, head_dim=128, rope=Rope(500000.0, scaling=_LLAMA3), tied=True,
        max_positions=131072,
    ),
    "tinyllama-1.1b": functools.partial(transformer, 32000, 2048, 22, 5632, 32, 4, max_positions=2048),
    "mobilellama-1.4b": functools.partial(
        transformer, 32000, 2048, 24, 5632, 16, 16, norm=RMSNorm(1e-6), max_positions=2048
    ),
    "mobilellama-2.7b": functools.partial(
        transformer, 32000, 2560, 32, 6912, 32, 32, norm=RMSNorm(1e-6), max_positions=2048
    ),
    "smollm-135m": functools.partial(transformer, 49152, 576, 30, 1536, 9, 3, tied=True, max_positions=2048),
    "smollm-360m": functools.partial(transformer, 49152, 960, 32, 2560, 15, 5, tied=True, max_positions=2048),
    "smollm-1.7b": functools.partial(transformer, 49152, 2048, 24, 8192, 32, 32, tied=True, max_positions=2048),
    "smollm2-135m": functools.partial(
        transformer, 49152, 576, 30, 1536, 9, 3, rope=Rope(100000.0), tied=True, max_positions=8192
    ),
    "smollm2-360m": functools.partial(
        transformer, 49152, 960, 32, 2560, 15, 5, rope=Rope(100000.0), tied=True, max_positions=8192
    ),
    "smollm2-1.7b": functools.partial(
        transformer, 49152, 2048, 24, 8192, 32, 32, rope=Rope(130000.0), tied=True, max_positions=8192
    ),
    "smollm3-3b": functools.partial(
        transformer, 128256, 2048, 36, 11008, 16, 4, rope=[None if i % 4 == 3 else Rope(5000000.0) for i in range(36)],
        norm=RMSNorm(1e-6), tied=True, max_positions=65536,
    ),
    "eurollm-1.7b": functools.partial(
        transformer, 128000, 2048, 24, 5632, 16, 8, max_positions=4096
    ),
    "salamandra-2b": functools.partial(transformer, 256000, 2048, 24, 5440, 16, 16, max_positions=8192),
}  # fmt: skip
