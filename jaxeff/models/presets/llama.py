"""The Llama graph (Touvron et al. 2023): pre-norm, rotary GQA, gated MLP; and the small models that are made of it."""

import functools

from jaxeff.mixers.gqa import GQA
from jaxeff.mixers.mlp import MLP
from jaxeff.mixers.norm import Norm, RMSNorm
from jaxeff.models.block import Block
from jaxeff.models.lm import LM
from jaxeff.models.stack import stages
from jaxeff.ops.rope import Llama3, Rope


def llama(
    vocab_size: int,
    d_model: int,
    n_layers: int,
    d_hidden: int,
    n_heads: int,
    n_kv_heads: int,
    *,
    head_dim: int | None = None,
    rope: Rope = Rope(),
    no_rope: tuple[int, ...] = (),
    windows: tuple[int | None, ...] | None = None,
    norm: Norm = RMSNorm(1e-5),
    qk_norm: Norm | None = None,
    biases: tuple[str, ...] = (),
    mlp_biases: tuple[str, ...] = (),
    activation: str = "silu",
    tied: bool = False,
    max_positions: int | None = None,
) -> LM:
    """The model. no_rope: layers without positions (SmolLM3). windows: how many tokens each layer sees, itself included, None for
    all. Raises ValueError for sizes that cannot be."""

    def block(layer: int) -> Block:
        window = None if windows is None else windows[layer]
        mixer = GQA(
            d_model, n_heads, n_kv_heads, head_dim or d_model // n_heads, biases=biases, qk_norm=qk_norm,
            rope=None if layer in no_rope else rope, window=None if window is None else (window - 1, 0),
        )  # fmt: skip
        return Block(mixer, MLP(d_model, d_hidden, activation, biases=mlp_biases), norm)

    return LM(
        vocab_size, d_model, stages([block(layer) for layer in range(n_layers)]),
        tied=tied, norm=norm, max_positions=max_positions,
    )  # fmt: skip


_LLAMA3 = Llama3(32.0, 1.0, 4.0, 8192)

PRESETS = {
    "llama-3.2-1b": functools.partial(
        llama, 128256, 2048, 16, 8192, 32, 8, rope=Rope(500000.0, scaling=_LLAMA3), tied=True, max_positions=131072
    ),
    "llama-3.2-3b": functools.partial(
        llama, 128256, 3072, 28, 8192, 24, 8, head_dim=128, rope=Rope(500000.0, scaling=_LLAMA3), tied=True,
        max_positions=131072,
    ),
    "tinyllama-1.1b": functools.partial(llama, 32000, 2048, 22, 5632, 32, 4, max_positions=2048),
    "mobilellama-1.4b": functools.partial(
        llama, 32000, 2048, 24, 5632, 16, 16, norm=RMSNorm(1e-6), max_positions=2048
    ),
    "mobilellama-2.7b": functools.partial(
        llama, 32000, 2560, 32, 6912, 32, 32, norm=RMSNorm(1e-6), max_positions=2048
    ),
    "smollm-135m": functools.partial(llama, 49152, 576, 30, 1536, 9, 3, tied=True, max_positions=2048),
    "smollm-360m": functools.partial(llama, 49152, 960, 32, 2560, 15, 5, tied=True, max_positions=2048),
    "smollm-1.7b": functools.partial(llama, 49152, 2048, 24, 8192, 32, 32, tied=True, max_positions=2048),
    "smollm2-135m": functools.partial(
        llama, 49152, 576, 30, 1536, 9, 3, rope=Rope(100000.0), tied=True, max_positions=8192
    ),
    "smollm2-360m": functools.partial(
        llama, 49152, 960, 32, 2560, 15, 5, rope=Rope(100000.0), tied=True, max_positions=8192
    ),
    "smollm2-1.7b": functools.partial(
        llama, 49152, 2048, 24, 8192, 32, 32, rope=Rope(130000.0), tied=True, max_positions=8192
    ),
    "smollm3-3b": functools.partial(
        llama, 128256, 2048, 36, 11008, 16, 4, rope=Rope(5000000.0), no_rope=tuple(range(3, 36, 4)), norm=RMSNorm(1e-6),
        tied=True, max_positions=65536,
    ),
    "eurollm-1.7b": functools.partial(
        llama, 128000, 2048, 24, 5632, 16, 8, max_positions=4096
    ),
    "salamandra-2b": functools.partial(llama, 256000, 2048, 24, 5440, 16, 16, max_positions=8192),
}  # fmt: skip
