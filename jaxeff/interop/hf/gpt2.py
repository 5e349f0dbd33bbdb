"""GPT-2."""

from typing import Any

from jaxeff.interop.hf.family import Family, embedding, norm
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.tensors import Tensor
from jaxeff.interop.hf.transformer import activation, attention_and_mlp, layer_norm, named_sizes, tied
from jaxeff.models.lm import LM
from jaxeff.models.presets.transformer import transformer

# Weights are [inputs, outputs] there.
TOP = (
    *embedding("transformer.wte"), Tensor("transformer.wpe.weight", {"positions": "t d -> t d"}),
    *norm("transformer.ln_f", "norm"),
)  # fmt: skip
BLOCK = (
    *norm("ln_1", "mixer_norm"), *norm("ln_2", "mlp_norm"),
    Tensor("attn.c_attn.weight", {f"mixer/{name}": "d (h c) -> d h c" for name in "qkv"}, 1),
    Tensor("attn.c_attn.bias", {f"mixer/{name}_bias": "(h c) -> h c" for name in "qkv"}),
    Tensor("attn.c_proj.weight", {"mixer/o": "(h c) d -> h c d"}), Tensor("attn.c_proj.bias", {"mixer/o_bias": "d -> d"}),
    Tensor("mlp.c_fc.weight", {"mlp/up": "d f -> d f"}), Tensor("mlp.c_fc.bias", {"mlp/up_bias": "f -> f"}),
    Tensor("mlp.c_proj.weight", {"mlp/down": "f d -> f d"}), Tensor("mlp.c_proj.bias", {"mlp/down_bias": "d -> d"}),
)  # fmt: skip


def _read(fields: Fields) -> LM:
    for name, value in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        fields.only(name, value)
    d_model, n_heads, length = fields("n_embd", int), fields("n_head", int), fields("n_positions", int, 1024)
    fields.only("n_ctx", length)
    return transformer(
        fields("vocab_size", int), d_model, fields("n_layer", int), fields("n_inner", int, 4 * d_model), n_heads, n_heads,
        norm=layer_norm(fields, "layer_norm_epsilon"), rope=None, learned_positions=True, max_positions=length,
        biases=("q", "k", "v", "o"), activation=activation(fields, "activation_function", "gelu_new"), gated=False,
        mlp_biases=("up", "down"), tied=tied(fields, True),
    )  # fmt: skip


NAMES = {
    "vocab_size": "vocab_size", "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
    "n_inner": "intermediate_size", "n_positions": "max_position_embeddings", "layer_norm_epsilon": "layer_norm_eps",
    "activation_function": "hidden_act", "tie_word_embeddings": "tie_word_embeddings",
}  # fmt: skip


def _write(model: LM) -> dict[str, Any]:
    attention_and_mlp(model)
    found = named_sizes(model)
    return {theirs: found[common] for theirs, common in NAMES.items()}


GPT2 = Family(
    "gpt2", "GPT2LMHeadModel", "transformer.h.{}.", _read, _write, TOP, lambda block: BLOCK, prefix="transformer.",
    ignored=r".*attn\.(masked_)?bias", harmless=frozenset({
        "attn_pdrop", "reorder_and_upcast_attn", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
        "summary_type", "summary_use_proj",
    }),
)  # fmt: skip
