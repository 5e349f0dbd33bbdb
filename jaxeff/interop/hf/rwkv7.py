"""RWKV-7 as flash-linear-attention has it: fla-hub/rwkv7-*. Transformers loads it once `fla` is imported.

With `fuse_norm` 1e-6 is added to a key's squared length, and `norm_eps`, times the head dimension, is that of the heads' norms
too: our mixer has the published 1e-12 and 1e-5, and all else is refused. `num_heads` counts only where `head_dim` is null, and
published files have another number there.
"""

from typing import Any

from jaxeff.interop.hf.family import Family, embedding, layers, norm
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.tensors import Tensor
from jaxeff.mixers.norm import LayerNorm
from jaxeff.mixers.rwkv7 import RWKV7, RWKV7Channel
from jaxeff.models.lm import LM
from jaxeff.models.presets.rwkv7 import rwkv7

# Ours -> theirs in tensors and in fields, and the rank where the configuration does not tell; null derives it from the width.
RANKS = {"decay": ("w", "decay", 64), "rate": ("a", "a", 64), "value": ("v", "v", 16), "gate": ("g", "gate", 128)}


def _low_rank(ours: str, theirs: str) -> tuple[Tensor, ...]:
    return (
        Tensor(f"attn.{theirs}_lora.lora.0.weight", {f"mixer/{ours}_low": "r d -> d r"}),
        Tensor(f"attn.{theirs}_lora.lora.2.weight", {f"mixer/{ours}_high": "(h c) r -> r h c"}),
        Tensor(f"attn.{theirs}_lora.lora.2.bias", {f"mixer/{ours}": "(h c) -> h c"}),
    )


TOP = (*embedding("model.embeddings"), *norm("model.layers.0.pre_norm", "embed_norm"), *norm("model.norm", "norm"))
BLOCK = (
    *norm("attn_norm", "mixer_norm"),
    *(Tensor(f"attn.x_{name}", {f"mixer/shift_{name}": "1 1 d -> d"}) for name in "rwkvag"),
    Tensor("attn.k_k", {"mixer/removal": "(h c) -> h c"}),
    Tensor("attn.k_a", {"mixer/replacement": "(h c) -> h c"}),
    Tensor("attn.r_k", {"mixer/bonus": "h c -> h c"}),
    *(Tensor(f"attn.{name}_proj.weight", {f"mixer/{name}": "(h c) d -> d h c"}) for name in "rkv"),
    Tensor("attn.o_proj.weight", {"mixer/o": "d (h c) -> h c d"}),
    *(row for ours, (theirs, *_) in RANKS.items() for row in _low_rank(ours, theirs)),
    Tensor("attn.g_norm.weight", {"mixer/norm/scale": "(h c) -> h c"}),
    Tensor("attn.g_norm.bias", {"mixer/norm/bias": "(h c) -> h c"}),
    *norm("ffn_norm", "mlp_norm"),
    Tensor("ffn.x_k", {"mlp/shift_k": "d -> d"}),
    Tensor("ffn.key.weight", {"mlp/k": "f d -> d f"}),
    Tensor("ffn.value.weight", {"mlp/v": "d f -> f d"}),
)
# How the recurrence is computed, losses, and the length of text, which only attention asks for.
HARMLESS = frozenset(
    {"attn_mode", "fuse_cross_entropy", "fuse_linear_cross_entropy", "max_position_embeddings", "use_l2warp"}
)


def _head_dim(fields: Fields, width: int) -> int:
    """C. Raises UserError where it is null and no number of heads tells it."""
    heads = fields("num_heads", int, None)
    if not fields.has("head_dim"):
        return 64
    if fields("head_dim", int, None) is not None:
        return fields("head_dim", int)
    if heads is None or heads < 1 or width % heads:
        raise fields.error("num_heads", f"must divide hidden_size={width} where head_dim is null")
    return width // heads


def _rank(fields: Fields, name: str, mixer: RWKV7) -> int:
    """Of the part called `name`: told, by default, or derived from the width."""
    field, default = f"{RANKS[name][1]}_low_rank_dim", RANKS[name][2]
    return fields(field, int, getattr(mixer, f"rank_{name}") if fields.has(field) else default)


def _hidden(fields: Fields, width: int) -> int:
    """F: a multiple of 32 where it is told as a ratio."""
    ratio = fields("hidden_ratio", float, 4.0)
    return fields("intermediate_size", int, -(-int(width * ratio) // 32) * 32)


def _read(fields: Fields) -> LM:
    width, n_layers = fields("hidden_size", int), fields("num_hidden_layers", int)
    if fields("fuse_norm", bool, True):
        raise fields.error("fuse_norm", "must be false: else keys are normalised with another eps than our mixer's")
    fields.only("norm_eps", 1e-5)
    fields.only("hidden_act", "sqrelu")
    fields.only("value_dim", width, [width] * n_layers)
    fields.only("attn")
    mixer = RWKV7(width, _head_dim(fields, width))
    return rwkv7(
        fields("vocab_size", int),
        width,
        n_layers,
        head_dim=mixer.head,
        ranks=tuple(_rank(fields, name, mixer) for name in RANKS),
        d_hidden=_hidden(fields, width),
        norm=LayerNorm(1e-5, bias=fields("norm_bias", bool, True)),
        embed_norm=fields("norm_first", bool, True),
        tied=fields("tie_word_embeddings", bool, False),
    )


def _write(model: LM) -> dict[str, Any]:
    block, *others = layers(model)
    if not all(isinstance(each.mixer, RWKV7) and isinstance(each.mlp, RWKV7Channel) for each in (block, *others)):
        raise LookupError("a layer is not RWKV-7's two mixers")
    if block.mixer.value_residual or not all(each.mixer.value_residual for each in others):
        raise LookupError("value_residual is not False in the first layer and True in all others")
    ranks = {f"{theirs}_low_rank_dim": getattr(block.mixer, f"rank_{ours}") for ours, (_, theirs, _) in RANKS.items()}
    return ranks | dict(
        vocab_size=model.vocab_size,
        hidden_size=model.d_model,
        num_hidden_layers=model.n_layers,
        head_dim=block.mixer.head,
        num_heads=block.mixer.heads,
        intermediate_size=block.mlp.hidden,
        hidden_act="sqrelu",
        norm_first=model.embed_norm is not None,
        norm_bias=block.norm.bias,
        norm_eps=block.norm.eps,
        fuse_norm=False,
        tie_word_embeddings=model.tied,
    )


RWKV7_FAMILY = Family(
    "rwkv7", "RWKV7ForCausalLM", "model.layers.{}.", _read, _write, TOP, lambda block: BLOCK, harmless=HARMLESS
)
