"""RWKV-7 as stages: the first layer, whose values all others are drawn to, stands by itself."""

import dataclasses

from jaxeff.mixers.norm import LayerNorm, Norm
from jaxeff.mixers.rwkv7 import RWKV7, RWKV7Channel
from jaxeff.models.block import Block
from jaxeff.models.stack import Stage


def rwkv7_stages(
    n_layers: int, mixer: RWKV7 = RWKV7(), channel: RWKV7Channel | None = RWKV7Channel(), norm: Norm = LayerNorm()
) -> tuple[Stage, ...]:
    """The stages of an RWKV-7 of `n_layers` layers; the published model has `LM(..., embed_norm=LayerNorm(), norm=LayerNorm())`.

    Raises ValueError for fewer than one layer.
    """
    if n_layers < 1:
        raise ValueError(f"rwkv7_stages: n_layers must be at least 1, found {n_layers}")
    first, later = (Block(dataclasses.replace(mixer, value_residual=r), channel, norm) for r in (False, True))
    rest = (Stage((later,), n_layers - 1),) if n_layers > 1 else ()
    return (Stage((first,)), *rest)
