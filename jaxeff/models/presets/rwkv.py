"""The RWKV-4 graph (Peng et al. 2023): LayerNorms, one of them after the embedding, time and channel mixers; and its published
models."""

import functools

from jaxeff.mixers.norm import LayerNorm
from jaxeff.mixers.rwkv4 import RWKV4, RWKV4Channel
from jaxeff.models.block import Block
from jaxeff.models.lm import LM
from jaxeff.models.stack import Stage


def rwkv4(
    vocab_size: int,
    d_model: int,
    n_layers: int,
    *,
    d_attention: int | None = None,
    d_hidden: int | None = None,
    norm: LayerNorm = LayerNorm(1e-5),
    tied: bool = False,
) -> LM:
    """The model; see `mixers.rwkv4`. norm: of the layers and of the embedding; the last one's eps is 1e-5. Raises ValueError for
    sizes that cannot be."""
    block = Block(RWKV4(d_model, d_attention), RWKV4Channel(d_model, d_hidden), norm)
    stages = (Stage((block,), n_layers),)
    return LM(vocab_size, d_model, stages, tied=tied, embed_norm=norm, norm=LayerNorm(1e-5))


PRESETS = {
    "rwkv-4-169m-pile": functools.partial(rwkv4, 50277, 768, 12),
    "rwkv-4-430m-pile": functools.partial(rwkv4, 50277, 1024, 24),
    "rwkv-4-1b5-pile": functools.partial(rwkv4, 50277, 2048, 24),
    "rwkv-4-3b-pile": functools.partial(rwkv4, 50277, 2560, 32),
}
