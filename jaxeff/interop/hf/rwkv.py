"""RWKV-4, as RWKV/rwkv-4-*-pile has it.

Every `rescale_every` layers Transformers, where it does not train, halves the residual stream and the weights that add to it: which
norms undo, but for their eps. Here nothing is halved, and texts may be longer than `context_length`.
"""

from typing import Any

from jaxeff.interop.hf.family import Family, embedding, layers, linear, norm
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.tensors import Tensor
from jaxeff.mixers.norm import LayerNorm
from jaxeff.mixers.rwkv4 import RWKV4, RWKV4Channel
from jaxeff.models.lm import LM
from jaxeff.models.presets.rwkv import rwkv4

NAMES = {"k": "key", "v": "value", "r": "receptance"}


def _mixes(name: str, part: str, weights: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(f"{name}.time_mix_{NAMES[w]}", {f"{part}/mix_{w}": "1 1 d -> d"}) for w in weights)


def _weights(name: str, part: str) -> tuple[Tensor, ...]:
    return tuple(row for w, long in NAMES.items() for row in linear(f"{name}.{long}", f"{part}/{w}", "a d -> d a"))


TOP = (
    *embedding("rwkv.embeddings", "head"), *norm("rwkv.blocks.0.pre_ln", "embed_norm"), *norm("rwkv.ln_out", "norm")
)  # fmt: skip
BLOCK = (
    *norm("ln1", "mixer_norm"), *_mixes("attention", "mixer", "kvr"), *_weights("attention", "mixer"),
    *linear("attention.output", "mixer/o", "d a -> a d"),
    Tensor("attention.time_decay", {"mixer/decay": "a -> a"}), Tensor("attention.time_first", {"mixer/bonus": "a -> a"}),
    *norm("ln2", "mlp_norm"), *_mixes("feed_forward", "mlp", "kr"), *_weights("feed_forward", "mlp"),
)  # fmt: skip


def _read(fields: Fields) -> LM:
    return rwkv4(
        fields("vocab_size", int),
        fields("hidden_size", int),
        fields("num_hidden_layers", int),
        d_attention=fields("attention_hidden_size", int, None),
        d_hidden=fields("intermediate_size", int, None),
        norm=LayerNorm(fields("layer_norm_epsilon", float, 1e-5)),
        tied=fields("tie_word_embeddings", bool, False),
    )


def _write(model: LM) -> dict[str, Any]:
    block, *others = layers(model)
    if not all(isinstance(each.mixer, RWKV4) and isinstance(each.mlp, RWKV4Channel) for each in (block, *others)):
        raise LookupError("a layer is not RWKV-4's two mixers")
    return dict(
        vocab_size=model.vocab_size,
        hidden_size=model.d_model,
        num_hidden_layers=model.n_layers,
        attention_hidden_size=block.mixer.attention,
        intermediate_size=block.mlp.hidden,
        layer_norm_epsilon=block.norm.eps,
        tie_word_embeddings=model.tied,
    )


RWKV = Family(
    "rwkv", "RwkvForCausalLM", "rwkv.blocks.{}.", _read, _write, TOP, lambda block: BLOCK,
    prefix="rwkv.", harmless=frozenset({"context_length", "rescale_every"}),
)  # fmt: skip
