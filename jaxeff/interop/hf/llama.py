"""Llama, Mistral and SmolLM3, and whatever is published under these names (TinyLlama, MobileLLaMA, SmolLM, EuroLLM, Salamandra)."""

from typing import Any

from jaxeff.interop.hf.family import ATTENTION, GATED_MLP, Family, embedding, norm
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.rope import read_rope
from jaxeff.interop.hf.transformer import (
    FULL,
    MLP_WEIGHTS,
    SLIDING,
    attention_and_mlp,
    flagged,
    layer_types,
    named_sizes,
    rms_norm,
    rotation,
    sizes,
    tied,
    windows,
)
from jaxeff.models.lm import LM
from jaxeff.models.presets.transformer import transformer

TOP = (*embedding(), *norm("model.norm", "norm"))
BLOCK = (
    *norm("input_layernorm", "mixer_norm"), *ATTENTION,
    *norm("post_attention_layernorm", "mlp_norm"), *GATED_MLP,
)  # fmt: skip


def _read_llama(fields: Fields) -> LM:
    return transformer(
        **sizes(fields), tied=tied(fields, False), norm=rms_norm(fields), rope=read_rope(fields),
        biases=flagged(fields, "attention_bias", "qkvo"), mlp_biases=flagged(fields, "mlp_bias", MLP_WEIGHTS),
    )  # fmt: skip


def _write_llama(model: LM) -> dict[str, Any]:
    mixers, mlps = attention_and_mlp(model)
    flags = {"attention_bias": bool(mixers[0].biases), "mlp_bias": bool(mlps[0].biases)}
    return named_sizes(model) | rotation(mixers) | flags


def _read_mistral(fields: Fields) -> LM:
    found, window = sizes(fields, 8), fields("sliding_window", int, None)
    return transformer(
        **found, tied=tied(fields, False), norm=rms_norm(fields), rope=read_rope(fields),
        windows=(window,) * found["n_layers"],
    )  # fmt: skip


def _write_mistral(model: LM) -> dict[str, Any]:
    mixers, _ = attention_and_mlp(model)
    return named_sizes(model) | rotation(mixers) | {"sliding_window": layer_types(mixers)[1]}


def _read_smollm3(fields: Fields) -> LM:
    found = sizes(fields, 4)
    n, interval = found["n_layers"], fields("no_rope_layer_interval", int, 4)
    rotated = fields("no_rope_layers", list, None) or [int((i + 1) % interval != 0) for i in range(n)]
    if len(rotated) < n or not set(rotated) <= {0, 1}:
        raise fields.error("no_rope_layers", f"must hold {n} times 1 or 0, whether a layer has positions")
    rope = read_rope(fields, 2000000.0)
    use, window = fields("use_sliding_window", bool, False), fields("sliding_window", int, None)
    window = window if use else None
    kinds = [SLIDING if window is not None and not rotated[i] else FULL for i in range(n)]
    return transformer(
        **found, tied=tied(fields, True), norm=rms_norm(fields), rope=[rope if rotated[i] else None for i in range(n)],
        windows=windows(fields, n, window, kinds),
        biases=flagged(fields, "attention_bias", "qkvo"), mlp_biases=flagged(fields, "mlp_bias", MLP_WEIGHTS),
    )  # fmt: skip


def _write_smollm3(model: LM) -> dict[str, Any]:
    mixers, _ = attention_and_mlp(model)
    kinds, window = layer_types(mixers)
    return _write_llama(model) | {
        "no_rope_layers": [int(m.rope is not None) for m in mixers],
        "layer_types": kinds,
        "sliding_window": window,
        "use_sliding_window": window is not None,
    }


def _family(model_type: str, architecture: str, read, write) -> Family:
    return Family(model_type, architecture, "model.layers.{}.", read, write, TOP, lambda block: BLOCK)


LLAMA = _family("llama", "LlamaForCausalLM", _read_llama, _write_llama)
MISTRAL = _family("mistral", "MistralForCausalLM", _read_mistral, _write_mistral)
SMOLLM3 = _family("smollm3", "SmolLM3ForCausalLM", _read_smollm3, _write_smollm3)
