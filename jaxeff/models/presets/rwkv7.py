"""The RWKV-7 graph (Peng et al. 2025): LayerNorms, one of them after the embedding, time and channel mixers; and its published
models, of which the World and the G1 series have the same sizes."""

import functools

from jaxeff.mixers.norm import LayerNorm
from jaxeff.mixers.rwkv7 import RWKV7, RWKV7Channel
from jaxeff.models.lm import LM
from jaxeff.models.rwkv import rwkv7_stages


def rwkv7(
    vocab_size: int,
    d_model: int,
    n_layers: int,
    *,
    head_dim: int = 64,
    ranks: tuple[int, int, int, int] | None = None,
    d_hidden: int | None = None,
    norm: LayerNorm = LayerNorm(1e-5),
    embed_norm: bool = True,
    tied: bool = False,
) -> LM:
    """The model; see `mixers.rwkv7`. norm: of the layers, of the end, and after the embedding where `embed_norm`. Raises ValueError
    for sizes that cannot be."""
    mixer, channel = RWKV7(d_model, head_dim, ranks), RWKV7Channel(d_model, d_hidden)
    stages = rwkv7_stages(n_layers, mixer, channel, norm)
    return LM(vocab_size, d_model, stages, tied=tied, embed_norm=norm if embed_norm else None, norm=norm)


PRESETS = {
    "rwkv7-0.1b": functools.partial(rwkv7, 65536, 768, 12, ranks=(64, 64, 32, 128)),
    "rwkv7-0.4b": functools.partial(rwkv7, 65536, 1024, 24, ranks=(64, 64, 32, 128)),
    "rwkv7-1.5b": functools.partial(rwkv7, 65536, 2048, 24, ranks=(96, 96, 64, 256)),
    "rwkv7-2.9b": functools.partial(rwkv7, 65536, 2560, 32, ranks=(96, 96, 64, 320)),
}
