"""The same language model twice, ours and Transformers', for each mixer that both have.

Sizes follow from a width: `Pair.lm` builds ours, `Pair.peer` names the peer's model, `Pair.fields` gives its config. Both have the
same number of parameters, which the benchmark checks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxeff.mixers.gated_deltanet import GatedDeltaNet
from jaxeff.mixers.gqa import GQA
from jaxeff.mixers.mamba import Mamba
from jaxeff.mixers.mamba2 import Mamba2
from jaxeff.mixers.mlp import MLP
from jaxeff.mixers.norm import LayerNorm, RMSNorm
from jaxeff.mixers.rglru import RGLRU
from jaxeff.mixers.rwkv4 import RWKV4, RWKV4Channel
from jaxeff.models.block import Block
from jaxeff.models.lm import LM
from jaxeff.models.stack import Stage


@dataclasses.dataclass(frozen=True)
class Pair:
    """block: of a width. peer: the peer's name of the model. fields: of its config, of a width. options: of our LM."""

    block: Callable[[int], Block]
    peer: str
    fields: Callable[[int], dict[str, Any]]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def lm(self, vocab_size: int, d_model: int, n_layers: int) -> LM:
        """Our model."""
        return LM(vocab_size, d_model, (Stage((self.block(d_model),), n_layers),), **self.options)


def _heads(d: int) -> int:
    return max(8, d // 64)


PLUS_ONE = RMSNorm(unit_offset=True)

PAIRS = {
    "gqa": Pair(
        lambda d: Block(GQA(n_heads=_heads(d), n_kv_heads=_heads(d) // 4), MLP(d_hidden=4 * d)),
        "llama",
        lambda d: dict(num_attention_heads=_heads(d), num_key_value_heads=_heads(d) // 4, intermediate_size=4 * d),
    ),
    "mamba": Pair(
        lambda d: Block(Mamba(), None, RMSNorm(1e-5)), "mamba", lambda d: dict(intermediate_size=2 * d, time_step_rank=d // 16)
    ),
    "mamba2": Pair(
        lambda d: Block(Mamba2(head_dim=64), None, RMSNorm(1e-5)),
        "mamba2",
        lambda d: dict(num_heads=2 * d // 64, head_dim=64, n_groups=1, state_size=128),
    ),
    "rwkv4": Pair(
        lambda d: Block(RWKV4(), RWKV4Channel(), LayerNorm()),
        "rwkv",
        lambda d: dict(attention_hidden_size=d, intermediate_size=4 * d, rescale_every=0),
        dict(embed_norm=LayerNorm(), norm=LayerNorm()),
    ),
    "rglru": Pair(
        lambda d: Block(RGLRU(n_heads=d // 32), MLP(d_hidden=3 * d, activation="gelu", biases=("gate", "up", "down")), PLUS_ONE),
        "recurrent_gemma",
        lambda d: dict(
            lru_width=d, num_attention_heads=d // 32, head_dim=32, intermediate_size=6 * d, block_types=["recurrent"],
            attention_window_size=64,
        ),
        dict(embed_scale="sqrt", softcap=30.0, norm=PLUS_ONE),
    ),
    "gated_deltanet": Pair(
        lambda d: Block(
            GatedDeltaNet(n_heads=d // 32, n_key_heads=d // 64, head_dim=64, value_dim=64), MLP(d_hidden=3 * d), PLUS_ONE
        ),
        "qwen3_next",
        lambda d: dict(
            linear_num_value_heads=d // 32, linear_num_key_heads=d // 64, linear_key_head_dim=64, linear_value_head_dim=64,
            intermediate_size=3 * d, num_experts=0, layer_types="linear_attention", num_attention_heads=4,
            num_key_value_heads=4, head_dim=32,
        ),
        dict(norm=PLUS_ONE),
    ),
}  # fmt: skip
