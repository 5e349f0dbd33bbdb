"""StableLM 2."""

from typing import Any

from jaxeff.interop.hf.family import ATTENTION, GATED_MLP, Family, norm, one
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.llama import TOP
from jaxeff.interop.hf.rope import read_rope
from jaxeff.interop.hf.transformer import attention_and_mlp, flagged, layer_norm, named_sizes, rotation, sizes, tied
from jaxeff.models.block import Block
from jaxeff.models.lm import LM
from jaxeff.models.presets.transformer import transformer


def _block(block: Block):
    """Where the branches stand side by side, both read the first norm."""
    first = "norm" if block.one_norm else "mixer_norm"
    return (*norm("input_layernorm", first), *ATTENTION, *norm("post_attention_layernorm", "mlp_norm"), *GATED_MLP)


def _read(fields: Fields) -> LM:
    fields.only("qk_layernorm", False)
    parallel = fields("use_parallel_residual", bool, False)
    return transformer(
        **sizes(fields, 32), norm=layer_norm(fields), parallel=parallel, one_norm=parallel, tied=tied(fields, False),
        rope=read_rope(fields, fraction=0.25), biases=flagged(fields, "use_qkv_bias", "qkv"),
    )  # fmt: skip


def _write(model: LM) -> dict[str, Any]:
    mixers, _ = attention_and_mlp(model)
    flags = {
        "use_parallel_residual": one((place.block.parallel for place in model.stack), "where branches stand"),
        "use_qkv_bias": bool(mixers[0].biases),
    }
    return named_sizes(model) | {"partial_rotary_factor": 1.0} | rotation(mixers) | flags


STABLELM = Family("stablelm", "StableLmForCausalLM", "model.layers.{}.", _read, _write, TOP, _block)
