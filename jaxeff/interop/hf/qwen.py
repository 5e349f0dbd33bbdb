"""Qwen2 (and 2.5) and Qwen3."""

from typing import Any

from jaxeff.interop.hf.family import Family, norm
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.llama import BLOCK, TOP
from jaxeff.interop.hf.rope import read_rope
from jaxeff.interop.hf.transformer import (
    FULL,
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

QK_NORMS = tuple(row for name in "qk" for row in norm(f"self_attn.{name}_norm", f"mixer/{name}_norm"))


def _common(fields: Fields) -> dict[str, Any]:
    found = sizes(fields, 32)
    n, window = found["n_layers"], fields("sliding_window", int, 4096)
    window = window if fields("use_sliding_window", bool, False) else None
    first = fields("max_window_layers", int, 28)
    kinds = [SLIDING if window is not None and i >= first else FULL for i in range(n)]
    found |= dict(windows=windows(fields, n, window, kinds), rope=read_rope(fields), tied=tied(fields, False))
    return found | dict(norm=rms_norm(fields))


def _read_qwen2(fields: Fields) -> LM:
    return transformer(**_common(fields), biases=("q", "k", "v"))


def _read_qwen3(fields: Fields) -> LM:
    found = _common(fields)
    found |= dict(head_dim=fields("head_dim", int, 128), qk_norm=found["norm"])
    return transformer(**found, biases=flagged(fields, "attention_bias", "qkvo"))


def _write_qwen2(model: LM) -> dict[str, Any]:
    mixers, _ = attention_and_mlp(model)
    kinds, window = layer_types(mixers)
    sliding = {"use_sliding_window": window is not None, "sliding_window": window, "layer_types": kinds}
    return named_sizes(model) | rotation(mixers) | sliding


def _write_qwen3(model: LM) -> dict[str, Any]:
    return _write_qwen2(model) | {"attention_bias": bool(attention_and_mlp(model)[0][0].biases)}


QWEN2 = Family("qwen2", "Qwen2ForCausalLM", "model.layers.{}.", _read_qwen2, _write_qwen2, TOP, lambda block: BLOCK)
QWEN3 = Family(
    "qwen3", "Qwen3ForCausalLM", "model.layers.{}.", _read_qwen3, _write_qwen3, TOP, lambda block: (*BLOCK, *QK_NORMS)
)
