"""Llama, Mistral and SmolLM3, and whatever is published under these names (TinyLlama, MobileLLaMA, SmolLM, EuroLLM, Salamandra)."""

from typing import Any

from jaxeff.interop.hf.family import ATTENTION, GATED_MLP, Family, embedding, layers, norm, one
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.rope import read_rope, write_rope
from jaxeff.mixers.gqa import GQA
from jaxeff.mixers.mlp import MLP
from jaxeff.mixers.norm import RMSNorm
from jaxeff.models.lm import LM
from jaxeff.models.presets.llama import llama

# Their name of an activation -> ours.
ACTIVATION = {"silu": "silu", "swish": "silu", "gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu",
              "relu": "relu", "relu2": "relu_squared", "tanh": "tanh"}  # fmt: skip
FULL, SLIDING = "full_attention", "sliding_attention"
MLP_WEIGHTS = ("gate", "up", "down")
TOP = (*embedding(), *norm("model.norm", "norm"))
BLOCK = (
    *norm("input_layernorm", "mixer_norm"), *ATTENTION,
    *norm("post_attention_layernorm", "mlp_norm"), *GATED_MLP,
)  # fmt: skip


def activation(fields: Fields, name: str = "hidden_act", default: str = "silu") -> str:
    """Ours. Raises UserError for one that is not known."""
    value = fields(name, str, default)
    if value not in ACTIVATION:
        raise fields.error(name, f"must be one of {', '.join(ACTIVATION)}")
    return ACTIVATION[value]


def activation_name(ours: str) -> str:
    """Theirs. Raises LookupError where there is none."""
    found = [theirs for theirs, name in ACTIVATION.items() if name == ours]
    if not found:
        raise LookupError(f"the activation {ours!r} has no name there")
    return found[0]


def sizes(fields: Fields, n_kv_heads: int | None = None) -> dict[str, Any]:
    """What all families of this shape call alike. n_kv_heads: where the configuration does not tell; None: as many as heads."""
    n_heads = fields("num_attention_heads", int)
    return dict(
        vocab_size=fields("vocab_size", int),
        d_model=fields("hidden_size", int),
        n_layers=fields("num_hidden_layers", int),
        d_hidden=fields("intermediate_size", int),
        n_heads=n_heads,
        n_kv_heads=fields("num_key_value_heads", int, n_kv_heads or n_heads),
        head_dim=fields("head_dim", int, None),
        norm=RMSNorm(fields("rms_norm_eps", float, 1e-6)),
        activation=activation(fields),
        max_positions=fields("max_position_embeddings", int, None),
    )


def named_sizes(model: LM) -> dict[str, Any]:
    """The fields that `sizes` reads. Raises LookupError for a model that is none of this shape."""
    mixers, mlps = attention_and_mlp(model)
    found = dict(
        vocab_size=model.vocab_size,
        hidden_size=model.d_model,
        num_hidden_layers=model.n_layers,
        intermediate_size=one((m.hidden for m in mlps), "the MLP's width"),
        num_attention_heads=one((m.heads for m in mixers), "heads"),
        num_key_value_heads=one((m.kv_heads for m in mixers), "kv heads"),
        head_dim=one((m.head for m in mixers), "the width of heads"),
        rms_norm_eps=model.norm.eps,
        hidden_act=activation_name(one((m.activation for m in mlps), "the activation")),
        tie_word_embeddings=model.tied,
    )
    return found | ({} if model.max_positions is None else {"max_position_embeddings": model.max_positions})


def attention_and_mlp(model: LM) -> tuple[list[GQA], list[MLP]]:
    """Those of all layers. Raises LookupError for a model that has others."""
    blocks = layers(model)
    if not all(isinstance(block.mixer, GQA) and isinstance(block.mlp, MLP) for block in blocks):
        raise LookupError("a layer is not attention and MLP")
    return [block.mixer for block in blocks], [block.mlp for block in blocks]


def flagged(fields: Fields, name: str, weights: str | tuple[str, ...]) -> tuple[str, ...]:
    """The weights that have a bias where the flag is set."""
    return tuple(weights) if fields(name, bool, False) else ()


def windows(fields: Fields, n_layers: int, window: int | None, kinds: list[str]) -> tuple[int | None, ...]:
    """How many tokens each layer sees. kinds: of the layers, where the configuration does not list them in `layer_types`."""
    kinds = fields("layer_types", list, None) or kinds
    if len(kinds) != n_layers or not set(kinds) <= {FULL, SLIDING}:
        raise fields.error("layer_types", f"must hold {n_layers} times {FULL!r} or {SLIDING!r}")
    if window is None and SLIDING in kinds:
        raise fields.error("sliding_window", "must be a number of tokens where layers are of that type")
    return tuple(window if kind == SLIDING else None for kind in kinds)


def layer_types(mixers: list[GQA]) -> tuple[list[str], int | None]:
    """The kinds of layers, and the window of those that have one. Raises LookupError where windows differ, or see the future."""
    found = [None if m.window is None else m.window[0] + 1 for m in mixers]
    distinct = set(found) - {None}
    return [FULL if w is None else SLIDING for w in found], one(distinct, "the window") if distinct else None


def rotation(mixers: list[GQA]) -> dict[str, Any]:
    """The fields of the one rotary embedding of all layers that have any."""
    return write_rope(one((m.rope for m in mixers if m.rope is not None), "the rotary embedding"))


def _read_llama(fields: Fields) -> LM:
    return llama(
        **sizes(fields), tied=fields("tie_word_embeddings", bool, False), rope=read_rope(fields),
        biases=flagged(fields, "attention_bias", "qkvo"), mlp_biases=flagged(fields, "mlp_bias", MLP_WEIGHTS),
    )  # fmt: skip


def _write_llama(model: LM) -> dict[str, Any]:
    mixers, mlps = attention_and_mlp(model)
    flags = {"attention_bias": bool(mixers[0].biases), "mlp_bias": bool(mlps[0].biases)}
    return named_sizes(model) | rotation(mixers) | flags


def _read_mistral(fields: Fields) -> LM:
    found, window = sizes(fields, 8), fields("sliding_window", int, None)
    return llama(
        **found, tied=fields("tie_word_embeddings", bool, False), rope=read_rope(fields),
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
    use, window = fields("use_sliding_window", bool, False), fields("sliding_window", int, None)
    window = window if use else None
    kinds = [SLIDING if window is not None and not rotated[i] else FULL for i in range(n)]
    return llama(
        **found, tied=fields("tie_word_embeddings", bool, True), rope=read_rope(fields, 2000000.0),
        windows=windows(fields, n, window, kinds),
        no_rope=tuple(i for i in range(n) if not rotated[i]),
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
