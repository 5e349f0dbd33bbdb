"""StableLM 2: LayerNorm, a quarter of the channels turned."""

import functools

from jaxeff.mixers.norm import LayerNorm
from jaxeff.models.presets.transformer import transformer
from jaxeff.ops.rope import Rope

PRESETS = {
    "stablelm-2-1.6b": functools.partial(
        transformer, 100352, 2048, 24, 5632, 32, 32, norm=LayerNorm(), rope=Rope(fraction=0.25), biases=("q", "k", "v"),
        max_positions=4096,
    )
}  # fmt: skip
