"""Phi-1.5 and 2 (both branches read one norm; biases everywhere, of the head too) and Phi-3 mini."""

import functools

from jaxeff.mixers.norm import LayerNorm
from jaxeff.models.presets.transformer import transformer
from jaxeff.ops.rope import Rope

_phi = functools.partial(
    transformer, 51200, norm=LayerNorm(), parallel=True, one_norm=True, biases=("q", "k", "v", "o"), activation="gelu",
    gated=False, mlp_biases=("up", "down"), head_bias=True, max_positions=2048,
)  # fmt: skip

PRESETS = {
    "phi-1.5": functools.partial(_phi, 2048, 24, 8192, 32, 32, rope=Rope(fraction=0.5)),
    "phi-2": functools.partial(_phi, 2560, 32, 10240, 32, 32, rope=Rope(fraction=0.4)),
    "phi-3-mini": functools.partial(
        transformer, 32064, 3072, 32, 8192, 32, 32, windows=(2047,) * 32, max_positions=4096
    ),
}
