"""Pythia (Biderman et al. 2023), the GPT-NeoX graph: both branches read x by norms of their own; a quarter of the channels turn."""

import functools

from jaxeff.mixers.norm import LayerNorm
from jaxeff.models.lm import LM
from jaxeff.models.presets.transformer import transformer
from jaxeff.ops.rope import Rope


def pythia(d_model: int, n_layers: int, n_heads: int) -> LM:
    """The model of these sizes."""
    return transformer(
        50304, d_model, n_layers, 4 * d_model, n_heads, n_heads, norm=LayerNorm(), parallel=True, rope=Rope(fraction=0.25),
        biases=("q", "k", "v", "o"), activation="gelu_exact", gated=False, mlp_biases=("up", "down"), max_positions=2048,
    )  # fmt: skip


PRESETS = {
    "pythia-14m": functools.partial(pythia, 128, 6, 4),
    "pythia-70m": functools.partial(pythia, 512, 6, 8),
    "pythia-160m": functools.partial(pythia, 768, 12, 12),
    "pythia-410m": functools.partial(pythia, 1024, 24, 16),
    "pythia-1b": functools.partial(pythia, 2048, 16, 8),
    "pythia-1.4b": functools.partial(pythia, 2048, 24, 16),
    "pythia-2.8b": functools.partial(pythia, 2560, 32, 32),
}
