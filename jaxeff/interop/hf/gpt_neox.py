"""GPT-NeoX, as Pythia is."""

from typing import Any

from jaxeff.interop.hf.family import Family, embedding, linear, norm, one
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.rope import read_rope
from jaxeff.interop.hf.tensors import Tensor
from jaxeff.interop.hf.transformer import attention_and_mlp, flagged, layer_norm, named_sizes, rotation, sizes, tied
from jaxeff.models.lm import LM
from jaxeff.models.presets.transformer import transformer

TOP = (*embedding("gpt_neox.embed_in", "embed_out"), *norm("gpt_neox.final_layer_norm", "norm"))
# The q, k and v of a head lie side by side.
BLOCK = (
    *norm("input_layernorm", "mixer_norm"), *norm("post_attention_layernorm", "mlp_norm"),
    Tensor(
        "attention.query_key_value.weight", {f"mixer/{name}": "h c d -> d h c" for name in "qkv"}, 1, "h c d -> (h c) d"
    ),
    Tensor("attention.query_key_value.bias", {f"mixer/{name}_bias": "h c -> h c" for name in "qkv"}, 1, "h c -> (h c)"),
    *linear("attention.dense", "mixer/o", "d (h c) -> h c d"),
    *linear("mlp.dense_h_to_4h", "mlp/up", "f d -> d f"), *linear("mlp.dense_4h_to_h", "mlp/down", "d f -> f d"),
)  # fmt: skip


def _read(fields: Fields) -> LM:
    for name in ("num_key_value_heads", "head_dim"):
        fields.only(name)
    base, share = fields("rotary_emb_base", float, 10000.0), fields("rotary_pct", float, 0.25)
    return transformer(
        **sizes(fields), norm=layer_norm(fields), parallel=fields("use_parallel_residual", bool, True),
        rope=read_rope(fields, base, share), biases=flagged(fields, "attention_bias", "qkvo", True),
        gated=False, mlp_biases=("up", "down"), tied=tied(fields, False),
    )  # fmt: skip


def _write(model: LM) -> dict[str, Any]:
    mixers, _ = attention_and_mlp(model)
    rope = {"partial_rotary_factor": 1.0} | rotation(mixers)
    common = {
        name: value for name, value in named_sizes(model).items() if name not in ("num_key_value_heads", "head_dim")
    }
    return common | rope | {
        "rotary_emb_base": rope["rope_theta"],
        "rotary_pct": rope["partial_rotary_factor"],
        "use_parallel_residual": one((place.block.parallel for place in model.stack), "where branches stand"),
        "attention_bias": bool(mixers[0].biases),
    }  # fmt: skip


GPT_NEOX = Family(
    "gpt_neox", "GPTNeoXForCausalLM", "gpt_neox.layers.{}.", _read, _write, TOP, lambda block: BLOCK, prefix="gpt_neox.",
    ignored=r".*(rotary_emb\.inv_freq|attention\.(masked_)?bias)", harmless=frozenset({"classifier_dropout"}),
)  # fmt: skip
