"""Gemma 2 and the text models of Gemma 3: norms before and after each branch, windows between layers that see everything."""

import functools

from jaxeff.mixers.norm import RMSNorm
from jaxeff.models.lm import LM
from jaxeff.models.presets.transformer import transformer
from jaxeff.ops.rope import Rope

_gemma = functools.partial(
    transformer, head_dim=256, scale=256**-0.5, norm=RMSNorm(1e-6, unit_offset=True), placement="sandwich",
    activation="gelu", embed_scale="sqrt", tied=True,
)  # fmt: skip


def gemma3(d_model: int, n_layers: int, d_hidden: int) -> LM:
    """Four query heads and one kv head; every sixth layer sees everything, and turns slower."""
    whole = [i % 6 == 5 for i in range(n_layers)]
    return _gemma(
        262144, d_model, n_layers, d_hidden, 4, 1, qk_norm=RMSNorm(1e-6, unit_offset=True), max_positions=32768,
        windows=[None if w else 512 for w in whole], rope=[Rope(1e6) if w else Rope() for w in whole],
    )  # fmt: skip


PRESETS = {
    "gemma-2-2b": functools.partial(
        _gemma, 256000, 2304, 26, 9216, 8, 4, windows=[None if i % 2 else 4096 for i in range(26)],
        softcap=50.0, final_softcap=30.0, max_positions=8192,
    ),
    "gemma-3-270m": functools.partial(gemma3, 640, 18, 2048),
    "gemma-3-1b": functools.partial(gemma3, 1152, 26, 6912),
}  # fmt: skip
