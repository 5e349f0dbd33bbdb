"""The Mamba-2 graph (Dao and Gu 2024): pre-norm state space duality, no channel mixer; and its published models."""

import functools

from jaxeff.mixers.mamba2 import Mamba2
from jaxeff.mixers.norm import RMSNorm
from jaxeff.mixers.short_conv import ShortConv
from jaxeff.models.block import Block
from jaxeff.models.lm import LM
from jaxeff.models.stack import Stage


def mamba2(
    vocab_size: int,
    d_model: int,
    n_layers: int,
    *,
    d_state: int = 128,
    expand: int = 2,
    head_dim: int = 64,
    n_groups: int = 1,
    conv: ShortConv = ShortConv(),
    dt_limit: tuple[float, float] | None = None,
    norm: RMSNorm = RMSNorm(1e-5),
    tied: bool = True,
) -> LM:
    """The model; see `mixers.mamba2`. Raises ValueError for sizes that cannot be."""
    mixer = Mamba2(d_model, d_state, expand, head_dim, n_groups, conv, dt_limit, norm=norm)
    return LM(vocab_size, d_model, (Stage((Block(mixer, None, norm),), n_layers),), tied=tied, norm=norm)


PRESETS = {
    "mamba2-130m": functools.partial(mamba2, 50288, 768, 24),
    "mamba2-370m": functools.partial(mamba2, 50288, 1024, 48),
    "mamba2-780m": functools.partial(mamba2, 50288, 1536, 48),
    "mamba2-1.3b": functools.partial(mamba2, 50288, 2048, 48),
    "mamba2-2.7b": functools.partial(mamba2, 50288, 2560, 64),
}
