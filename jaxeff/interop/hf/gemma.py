"""Gemma 2 and the text models of Gemma 3."""

from typing import Any

from jaxeff.interop.hf.family import ATTENTION, GATED_MLP, Family, norm, one
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.llama import TOP
from jaxeff.interop.hf.qwen import QK_NORMS
from jaxeff.interop.hf.rope import parameters, read_rope, write_rope
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
from jaxeff.ops.rope import Rope

BLOCK = (
    *norm("input_layernorm", "mixer_norm"), *ATTENTION, *QK_NORMS,
    *norm("post_attention_layernorm", "mixer_post_norm"), *norm("pre_feedforward_layernorm", "mlp_norm"), *GATED_MLP,
    *norm("post_feedforward_layernorm", "mlp_post_norm"),
)  # fmt: skip


def _common(fields: Fields, caps: tuple[float | None, float | None], pattern: int) -> dict[str, Any]:
    """caps: of scores and logits, where the configuration does not tell. pattern: every so manieth layer sees everything."""
    activation = fields("hidden_activation", str, "gelu_pytorch_tanh")
    fields.only("hidden_act", activation)
    fields.only("use_bidirectional_attention", False)
    found = sizes(fields, 4, "hidden_activation")
    n = found["n_layers"]
    kinds = [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(n)]
    return found | dict(
        head_dim=fields("head_dim", int, 256),
        norm=rms_norm(fields, unit_offset=True),
        placement="sandwich",
        embed_scale="sqrt",
        scale=fields("query_pre_attn_scalar", float, 256.0) ** -0.5,
        softcap=_cap(fields, "attn_logit_softcapping", caps[0]),
        final_softcap=_cap(fields, "final_logit_softcapping", caps[1]),
        windows=windows(fields, n, fields("sliding_window", int, 4096), kinds),
        biases=flagged(fields, "attention_bias", "qkvo"),
        tied=tied(fields, True),
    )


def _cap(fields: Fields, name: str, default: float | None) -> float | None:
    """null, unlike an absent field, means none."""
    return fields(name, float, default if not fields.has(name) else None)


def _read_gemma2(fields: Fields) -> LM:
    return transformer(**_common(fields, (50.0, 30.0), 2), rope=read_rope(fields))


def _read_gemma3(fields: Fields) -> LM:
    fields.only("attn_logit_softcapping")  # Transformers reads it and does nothing with it
    found = _common(
        fields, (None, None), fields("sliding_window_pattern", int, fields("_sliding_window_pattern", int, 6))
    )
    ropes = _ropes(fields)
    rope = [ropes[FULL if window is None else SLIDING] for window in found["windows"]]
    return transformer(**found, rope=rope, qk_norm=found["norm"])


def _ropes(fields: Fields) -> dict[str, Rope]:
    """Of the layers that see everything, and of the others. Transformers 4 stretches the former alone."""
    whole, local = 1_000_000.0, fields("rope_local_base_freq", float, 10_000.0)
    if "rope_parameters" not in fields:
        return {FULL: read_rope(fields, whole), SLIDING: Rope(local)}
    both = fields.inner("rope_parameters")
    length = fields("max_position_embeddings", int, None)
    found = {kind: parameters(both.inner(kind), base, 1.0, length) for kind, base in ((FULL, whole), (SLIDING, local))}
    both.finish()
    return found


def _write_gemma2(model: LM) -> dict[str, Any]:
    mixers, _ = attention_and_mlp(model)
    return _written(model) | rotation(mixers)


def _write_gemma3(model: LM) -> dict[str, Any]:
    mixers, _ = attention_and_mlp(model)
    full = one((m.rope for m in mixers if m.window is None), "the rotary embedding of layers that see everything")
    local = one((m.rope for m in mixers if m.window is not None), "the rotary embedding of layers with a window")
    return _written(model) | write_rope(full) | {"rope_local_base_freq": local.base}


def _written(model: LM) -> dict[str, Any]:
    mixers, _ = attention_and_mlp(model)
    kinds, window = layer_types(mixers)
    found = named_sizes(model)
    activation = found["hidden_act"].replace(
        "gelu_new", "gelu_pytorch_tanh"
    )  # the same function, by the name that Gemma uses
    scale = one((m.scale or m.head**-0.5 for m in mixers), "the scale of scores")
    return found | {
        "hidden_act": activation,
        "hidden_activation": activation,
        "query_pre_attn_scalar": _whole(scale**-2),
        "attn_logit_softcapping": one((m.softcap for m in mixers), "the cap of scores"),
        "final_logit_softcapping": model.softcap,
        "layer_types": kinds,
        "sliding_window": window,
        "attention_bias": bool(mixers[0].biases),
    }


def _whole(x: float) -> float | int:
    """x, as the integer that it is but for rounding."""
    return round(x) if abs(x - round(x)) < 1e-9 * x else x


_HARMLESS = frozenset({"cache_implementation"})
GEMMA2 = Family(
    "gemma2", "Gemma2ForCausalLM", "model.layers.{}.", _read_gemma2, _write_gemma2, TOP, lambda block: BLOCK,
    harmless=_HARMLESS,
)  # fmt: skip
GEMMA3 = Family(
    "gemma3_text", "Gemma3ForCausalLM", "model.layers.{}.", _read_gemma3, _write_gemma3, TOP, lambda block: BLOCK,
    harmless=_HARMLESS,
)  # fmt: skip
