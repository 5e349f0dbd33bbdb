"""GPT-2: learned positions, LayerNorm, biases everywhere."""

import functools

from jaxeff.mixers.norm import LayerNorm
from jaxeff.models.lm import LM
from jaxeff.models.presets.transformer import transformer


def gpt2(d_model: int, n_layers: int, n_heads: int) -> LM:
    """The model of these sizes."""
    return transformer(
        50257, d_model, n_layers, 4 * d_model, n_heads, n_heads, norm=LayerNorm(), rope=None, learned_positions=True,
        max_positions=1024, biases=("q", "k", "v", "o"), activation="gelu", gated=False, mlp_biases=("up", "down"), tied=True,
    )  # fmt: skip


PRESETS = {
    "gpt2": functools.partial(gpt2, 768, 12, 12),
    "gpt2-medium": functools.partial(gpt2, 1024, 24, 16),
    "gpt2-large": functools.partial(gpt2, 1280, 36, 20),
    "gpt2-xl": functools.partial(gpt2, 1600, 48, 25),
}
