"""The Griffin graph (De et al. 2024) as RecurrentGemma has it (Botev et al. 2024): two recurrent layers and one of local attention
in turn, gated MLPs; and the small model that is made of it."""

import functools

import jax.numpy as jnp

from jaxeff.mixers.gqa import GQA
from jaxeff.mixers.mlp import MLP
from jaxeff.mixers.norm import RMSNorm
from jaxeff.mixers.rglru import RGLRU
from jaxeff.mixers.short_conv import ShortConv
from jaxeff.models.block import Block
from jaxeff.models.lm import LM
from jaxeff.models.stack import stages
from jaxeff.ops.rope import Rope

RECURRENT, ATTENTION = "recurrent", "attention"


def recurrent_gemma(
    vocab_size: int,
    d_model: int,
    n_layers: int,
    d_hidden: int,
    n_heads: int,
    n_kv_heads: int,
    *,
    pattern: tuple[str, ...] = (RECURRENT, RECURRENT, ATTENTION),
    d_rnn: int | None = None,
    conv_width: int = 4,
    window: int = 2048,
    head_dim: int | None = None,
    rope: Rope = Rope(fraction=0.5),
    biases: tuple[str, ...] = ("o",),
    norm: RMSNorm = RMSNorm(1e-6, unit_offset=True),
    softcap: float = 30.0,
    tied: bool = True,
) -> LM:
    """The model. pattern: kinds of layers, repeated and cut off at `n_layers`. d_hidden: of the MLPs. n_heads: of attention and,
    as blocks of the gates, of the recurrence. window: how many tokens attention sees, itself included. Raises ValueError for sizes
    that cannot be and kinds that are none."""
    kinds = {
        RECURRENT: RGLRU(d_model, d_rnn, n_heads, ShortConv(conv_width, activation=None)),
        ATTENTION: GQA(
            d_model, n_heads, n_kv_heads, head_dim or d_model // n_heads, window=(window - 1, 0), rope=rope, biases=biases
        ),
    }  # fmt: skip
    if not pattern or not set(pattern) <= set(kinds):
        raise ValueError(f"recurrent_gemma's pattern is made of {RECURRENT!r} and {ATTENTION!r}, found {pattern!r}")
    mlp = MLP(d_model, d_hidden, "gelu", biases=("gate", "up", "down"))
    blocks = [Block(kinds[pattern[i % len(pattern)]], mlp, norm) for i in range(n_layers)]
    return LM(
        vocab_size, d_model, stages(blocks), tied=tied, embed_scale=rounded_sqrt(d_model), softcap=softcap, norm=norm
    )  # fmt: skip


def rounded_sqrt(d_model: int) -> float:
    """sqrt(D) as bfloat16 has it, which the published model was trained with and is computed with in any dtype."""
    return float(jnp.dtype("bfloat16").type(d_model**0.5))


PRESETS = {"recurrentgemma-2b": functools.partial(recurrent_gemma, 256000, 2560, 26, 7680, 10, 1)}
