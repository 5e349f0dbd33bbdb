"""The Mamba graph (Gu and Dao 2023): pre-norm selective state spaces, no channel mixer; and its published models."""

import functools

from jaxeff.mixers.mamba import Mamba
from jaxeff.mixers.norm import RMSNorm
from jaxeff.mixers.short_conv import ShortConv
from jaxeff.models.block import Block
from jaxeff.models.lm import LM
from jaxeff.models.stack import Stage


def mamba(
    vocab_size: int,
    d_model: int,
    n_layers: int,
    *,
    d_state: int = 16,
    expand: int = 2,
    dt_rank: int | None = None,
    conv: ShortConv = ShortConv(),
    norm: RMSNorm = RMSNorm(1e-5),
    bcdt_eps: float | None = None,
    biases: tuple[str, ...] = (),
    tied: bool = True,
) -> LM:
    """The model; see `mixers.mamba`. Raises ValueError for sizes that cannot be."""
    mixer = Mamba(d_model, d_state, expand, dt_rank, conv, bcdt_eps=bcdt_eps, biases=biases)
    return LM(vocab_size, d_model, (Stage((Block(mixer, None, norm),), n_layers),), tied=tied, norm=norm)


PRESETS = {
    "mamba-130m": functools.partial(mamba, 50280, 768, 24),
    "mamba-370m": functools.partial(mamba, 50280, 1024, 48),
    "mamba-790m": functools.partial(mamba, 50280, 1536, 48),
    "mamba-1.4b": functools.partial(mamba, 50280, 2048, 48),
    "mamba-2.8b": functools.partial(mamba, 50280, 2560, 64),
}
