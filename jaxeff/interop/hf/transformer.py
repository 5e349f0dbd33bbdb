"""What the configurations of most Transformers have in common, read and written."""

from typing import Any

from jaxeff.interop.hf.family import layers, one
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.rope import write_rope
from jaxeff.mixers.gqa import GQA
from jaxeff.mixers.mlp import MLP
from jaxeff.mixers.norm import LayerNorm, RMSNorm
from jaxeff.models.lm import LM

# Their name of an activation -> ours.
ACTIVATION = {
    "silu": "silu", "swish": "silu", "gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu",
    "relu": "relu", "relu2": "relu_squared", "tanh": "tanh",
}  # fmt: skip
NORMS: dict[type, str] = {RMSNorm: "rms_norm_eps", LayerNorm: "layer_norm_eps"}
FULL, SLIDING = "full_attention", "sliding_attention"
MLP_WEIGHTS = ("gate", "up", "down")


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


def sizes(fields: Fields, n_kv_heads: int | None = None, act: str = "hidden_act") -> dict[str, Any]:
    """What most families call alike, as arguments of `transformer`. n_kv_heads: where the configuration does not tell; None: as
    many as heads. act: what the activation is called."""
    n_heads = fields("num_attention_heads", int)
    return dict(
        vocab_size=fields("vocab_size", int),
        d_model=fields("hidden_size", int),
        n_layers=fields("num_hidden_layers", int),
        d_hidden=fields("intermediate_size", int),
        n_heads=n_heads,
        n_kv_heads=fields("num_key_value_heads", int, n_kv_heads or n_heads),
        head_dim=fields("head_dim", int, None),
        activation=activation(fields, act),
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
        hidden_act=activation_name(one((m.activation for m in mlps), "the activation")),
        tie_word_embeddings=model.tied,
    )
    found |= {NORMS[type(model.norm)]: model.norm.eps}
    return found | ({} if model.max_positions is None else {"max_position_embeddings": model.max_positions})


def attention_and_mlp(model: LM) -> tuple[list[GQA], list[MLP]]:
    """Those of all layers. Raises LookupError for a model that has others."""
    blocks = layers(model)
    if not all(isinstance(block.mixer, GQA) and isinstance(block.mlp, MLP) for block in blocks):
        raise LookupError("a layer is not attention and MLP")
    return [block.mixer for block in blocks], [block.mlp for block in blocks]


def flagged(fields: Fields, name: str, weights: str | tuple[str, ...], default: bool = False) -> tuple[str, ...]:
    """The weights that have a bias where the flag is set."""
    return tuple(weights) if fields(name, bool, default) else ()


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
    """The fields of the one rotary embedding of all layers that have any. Raises LookupError where none has, or they differ."""
    return write_rope(one((m.rope for m in mixers if m.rope is not None), "the rotary embedding"))


def rms_norm(fields: Fields, default: float = 1e-6, unit_offset: bool = False) -> RMSNorm:
    """That of the whole model."""
    return RMSNorm(fields("rms_norm_eps", float, default), unit_offset)


def layer_norm(fields: Fields, name: str = "layer_norm_eps") -> LayerNorm:
    """That of the whole model."""
    return LayerNorm(fields(name, float, 1e-5))


def tied(fields: Fields, default: bool) -> bool:
    """Whether the head is the embedding."""
    return fields("tie_word_embeddings", bool, default)
