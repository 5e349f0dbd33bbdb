"""RecurrentGemma: Griffin's recurrent layers and local attention in turn."""

from typing import Any

from jaxeff.interop.hf.family import Family, embedding, layers, linear, norm, one
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.rope import read_rope, write_rope
from jaxeff.interop.hf.tensors import Tensor
from jaxeff.mixers.gqa import GQA
from jaxeff.mixers.mlp import MLP
from jaxeff.mixers.norm import RMSNorm
from jaxeff.mixers.rglru import RGLRU
from jaxeff.models.block import Block
from jaxeff.models.lm import LM
from jaxeff.models.presets.recurrent_gemma import ATTENTION, RECURRENT, recurrent_gemma

INWARDS, OUTWARDS = "(h c) d -> d h c", "d (h c) -> h c d"
TOP = (*embedding(), *norm("model.final_norm", "norm"))
NORMS_AND_MLP = (
    *norm("temporal_pre_norm", "mixer_norm"), *norm("channel_pre_norm", "mlp_norm"),
    *(row for name in ("gate", "up", "down") for row in linear(f"mlp_block.{name}_proj", f"mlp/{name}", "o i -> i o")),
)  # fmt: skip
MIXERS = {
    GQA: (
        *(row for name in "qkv" for row in linear(f"temporal_block.{name}_proj", f"mixer/{name}", INWARDS)),
        *linear("temporal_block.o_proj", "mixer/o", OUTWARDS),
    ),
    RGLRU: (
        *(row for name in "xy" for row in linear(f"temporal_block.linear_{name}", f"mixer/{name}", INWARDS)),
        *linear("temporal_block.linear_out", "mixer/o", OUTWARDS),
        Tensor("temporal_block.conv_1d.weight", {"mixer/conv_x/w": "(h c) 1 w -> w h c"}),
        Tensor("temporal_block.conv_1d.bias", {"mixer/conv_x/bias": "(h c) -> h c"}),
        Tensor("temporal_block.rg_lru.recurrent_param", {"mixer/a_param": "(h c) -> h c"}),
        Tensor("temporal_block.rg_lru.recurrent_gate_weight", {"mixer/r": "h c e -> h c e"}),
        Tensor("temporal_block.rg_lru.recurrent_gate_bias", {"mixer/r_bias": "h c -> h c"}),
        Tensor("temporal_block.rg_lru.input_gate_weight", {"mixer/i": "h c e -> h c e"}),
        Tensor("temporal_block.rg_lru.input_gate_bias", {"mixer/i_bias": "h c -> h c"}),
    ),
}  # fmt: skip


def _block(block: Block) -> tuple[Tensor, ...]:
    return (*NORMS_AND_MLP, *MIXERS[type(block.mixer)])


def _read(fields: Fields) -> LM:
    fields.only("hidden_activation", "gelu_pytorch_tanh", "gelu_new")
    fields.only("embeddings_scale_by_sqrt_dim", True)
    pattern = tuple(fields("block_types", list, [RECURRENT, RECURRENT, ATTENTION]))
    if not pattern or not set(pattern) <= {RECURRENT, ATTENTION}:
        raise fields.error("block_types", f"must be made of {RECURRENT!r} and {ATTENTION!r}")
    hidden, n_heads = fields("intermediate_size", int), fields("num_attention_heads", int)
    if hidden % 2:
        raise fields.error("intermediate_size", "must be even: half of it is the MLP's width")
    rope = read_rope(fields, fraction=0.5)
    if rope.scaling is not None:
        raise fields.error("rope_parameters" if "rope_parameters" in fields else "rope_scaling", "must not scale")
    return recurrent_gemma(
        fields("vocab_size", int),
        fields("hidden_size", int),
        fields("num_hidden_layers", int),
        hidden // 2,
        n_heads,
        fields("num_key_value_heads", int, n_heads),
        pattern=pattern,
        d_rnn=fields("lru_width", int, None),
        conv_width=fields("conv1d_width", int, 4),
        window=fields("attention_window_size", int, 2048),
        head_dim=fields("head_dim", int, None),
        rope=rope,
        biases=("q", "k", "v", "o") if fields("attention_bias", bool, False) else ("o",),
        norm=RMSNorm(fields("rms_norm_eps", float, 1e-6), unit_offset=True),
        softcap=fields("logits_soft_cap", float, 30.0),
        tied=fields("tie_word_embeddings", bool, True),
    )


def _write(model: LM) -> dict[str, Any]:
    blocks = layers(model)
    mixers = [block.mixer for block in blocks]
    if not all(isinstance(block.mlp, MLP) and isinstance(block.mixer, RGLRU | GQA) for block in blocks):
        raise LookupError("a layer is neither Griffin's nor attention, with an MLP")
    found = dict(
        vocab_size=model.vocab_size,
        hidden_size=model.d_model,
        num_hidden_layers=model.n_layers,
        intermediate_size=2 * one((block.mlp.hidden for block in blocks), "the MLP's width"),
        num_attention_heads=one((mixer.heads for mixer in mixers), "heads"),
        block_types=_period([RECURRENT if isinstance(mixer, RGLRU) else ATTENTION for mixer in mixers]),
        hidden_activation="gelu_pytorch_tanh",
        rms_norm_eps=model.norm.eps,
        logits_soft_cap=model.softcap,
        tie_word_embeddings=model.tied,
    )
    for mixer in dict.fromkeys(mixers):
        found |= _recurrent(mixer) if isinstance(mixer, RGLRU) else _attention(mixer)
    return found


def _recurrent(mixer: RGLRU) -> dict[str, Any]:
    return {"lru_width": mixer.rnn, "conv1d_width": mixer.conv.width}


def _attention(mixer: GQA) -> dict[str, Any]:
    if mixer.window is None or mixer.rope is None:
        raise LookupError("a layer's attention has no window, or no rotation")
    return write_rope(mixer.rope) | {
        "partial_rotary_factor": mixer.rope.fraction,
        "num_key_value_heads": mixer.kv_heads,
        "head_dim": mixer.head,
        "attention_window_size": mixer.window[0] + 1,
        "attention_bias": "q" in mixer.biases,
    }


def _period(kinds: list[str]) -> list[str]:
    """The shortest list that, repeated, begins with `kinds`."""
    n = next(n for n in range(1, len(kinds) + 1) if all(kind == kinds[i % n] for i, kind in enumerate(kinds)))
    return kinds[:n]


RECURRENT_GEMMA = Family(
    "recurrent_gemma", "RecurrentGemmaForCausalLM", "model.layers.{}.", _read, _write, TOP, _block,
    harmless=frozenset({"final_w_init_variance_scale", "w_init_variance_scale"}),
)  # fmt: skip
