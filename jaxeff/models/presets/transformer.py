"""Decoder-only Transformers whose layers are alike but for windows and rotary embeddings: the graph of most published ones."""

from collections.abc import Sequence
from typing import Literal

from jaxeff.mixers.gqa import GQA
from jaxeff.mixers.mlp import MLP
from jaxeff.mixers.norm import Norm, RMSNorm
from jaxeff.models.block import Block
from jaxeff.models.lm import LM
from jaxeff.models.stack import stages
from jaxeff.ops.rope import Rope


def transformer(
    vocab_size: int,
    d_model: int,
    n_layers: int,
    d_hidden: int,
    n_heads: int,
    n_kv_heads: int,
    *,
    head_dim: int | None = None,
    rope: Rope | None | Sequence[Rope | None] = Rope(),
    windows: Sequence[int | None] | None = None,
    norm: Norm = RMSNorm(1e-5),
    placement: Literal["pre", "post", "sandwich"] = "pre",
    parallel: bool = False,
    one_norm: bool = False,
    qk_norm: Norm | None = None,
    qk_norm_over: Literal["head", "all"] = "head",
    scale: float | None = None,
    softcap: float | None = None,
    biases: tuple[str, ...] = (),
    activation: str = "silu",
    gated: bool = True,
    mlp_biases: tuple[str, ...] = (),
    tied: bool = False,
    head_bias: bool = False,
    learned_positions: bool = False,
    embed_scale: float | Literal["sqrt"] | None = None,
    final_softcap: float | None = None,
    max_positions: int | None = None,
) -> LM:
    """The model. rope: of every layer, or of each. windows: how many tokens each layer sees, itself included, None for all.
    softcap: of the scores, final_softcap of the logits. The rest as `GQA`, `MLP`, `Block` and `LM` call it.

    Raises ValueError for sizes that cannot be.
    """

    def block(layer: int) -> Block:
        window = None if windows is None else windows[layer]
        mixer = GQA(
            d_model, n_heads, n_kv_heads, head_dim or d_model // n_heads,
            rope=rope[layer] if isinstance(rope, Sequence) else rope, window=None if window is None else (window - 1, 0),
            qk_norm=qk_norm, qk_norm_over=qk_norm_over, biases=biases, scale=scale, softcap=softcap,
        )  # fmt: skip
        mlp = MLP(d_model, d_hidden, activation, gated, mlp_biases)
        return Block(mixer, mlp, norm, placement, parallel, one_norm)

    return LM(
        vocab_size, d_model, stages([block(layer) for layer in range(n_layers)]),
        tied=tied, head_bias=head_bias, embed_scale=embed_scale, learned_positions=learned_positions,
        softcap=final_softcap, norm=norm, max_positions=max_positions,
    )  # fmt: skip
