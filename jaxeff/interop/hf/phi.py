"""Phi-1, 1.5 and 2, and Phi-3."""

from typing import Any

from jaxeff.interop.hf.family import Family, embedding, linear, norm, one
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.llama import TOP
from jaxeff.interop.hf.rope import read_rope
from jaxeff.interop.hf.tensors import Tensor
from jaxeff.interop.hf.transformer import (
    attention_and_mlp,
    layer_norm,
    layer_types,
    named_sizes,
    rms_norm,
    rotation,
    sizes,
    tied,
)
from jaxeff.models.lm import LM
from jaxeff.models.presets.transformer import transformer

PHI_TOP = (*embedding(), Tensor("lm_head.bias", {"head_bias": "v -> v"}), *norm("model.final_layernorm", "norm"))
PHI_BLOCK = (
    *norm("input_layernorm", "norm"),
    *(row for name in "qkv" for row in linear(f"self_attn.{name}_proj", f"mixer/{name}", "(h c) d -> d h c")),
    *linear("self_attn.dense", "mixer/o", "d (h c) -> h c d"),
    *norm("self_attn.q_layernorm", "mixer/q_norm"), *norm("self_attn.k_layernorm", "mixer/k_norm"),
    *linear("mlp.fc1", "mlp/up", "f d -> d f"), *linear("mlp.fc2", "mlp/down", "d f -> f d"),
)  # fmt: skip
PHI3_BLOCK = (
    *norm("input_layernorm", "mixer_norm"),
    Tensor("self_attn.qkv_proj.weight", {f"mixer/{name}": "(h c) d -> d h c" for name in "qkv"}),
    *linear("self_attn.o_proj", "mixer/o", "d (h c) -> h c d"),
    *norm("post_attention_layernorm", "mlp_norm"),
    Tensor("mlp.gate_up_proj.weight", {"mlp/gate": "f d -> d f", "mlp/up": "f d -> d f"}),
    *linear("mlp.down_proj", "mlp/down", "d f -> f d"),
)  # fmt: skip


def _read_phi(fields: Fields) -> LM:
    norm = layer_norm(fields)
    return transformer(
        **sizes(fields), norm=norm, parallel=True, one_norm=True, rope=read_rope(fields, fraction=0.5),
        qk_norm=norm if fields("qk_layernorm", bool, False) else None, biases=("q", "k", "v", "o"),
        gated=False, mlp_biases=("up", "down"), tied=tied(fields, False), head_bias=True,
    )  # fmt: skip


def _write_phi(model: LM) -> dict[str, Any]:
    mixers, _ = attention_and_mlp(model)
    rope = {"partial_rotary_factor": 1.0} | rotation(mixers)
    return (
        named_sizes(model) | rope | {"qk_layernorm": one((m.qk_norm for m in mixers), "norms of q and k") is not None}
    )


def _read_phi3(fields: Fields) -> LM:
    found, window = sizes(fields), fields("sliding_window", int, None)
    fields("original_max_position_embeddings", int, None)  # read by kinds of scaling that are refused
    for name in ("rope_scaling", "rope_parameters"):
        if name in fields and fields.inner(name)("rope_type", str, "default") != "default":
            raise fields.error(name, "is not understood for Phi-3, whose frequencies change with the text's length")
    return transformer(
        **found, norm=rms_norm(fields, 1e-5), rope=read_rope(fields), windows=(window,) * found["n_layers"],
        tied=tied(fields, False),
    )  # fmt: skip


def _write_phi3(model: LM) -> dict[str, Any]:
    mixers, _ = attention_and_mlp(model)
    return named_sizes(model) | rotation(mixers) | {"sliding_window": layer_types(mixers)[1]}


PHI = Family("phi", "PhiForCausalLM", "model.layers.{}.", _read_phi, _write_phi, PHI_TOP, lambda block: PHI_BLOCK)
PHI3 = Family("phi3", "Phi3ForCausalLM", "model.layers.{}.", _read_phi3, _write_phi3, TOP, lambda block: PHI3_BLOCK)
