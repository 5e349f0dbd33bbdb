"""OLMo 2."""

from typing import Any

from jaxeff.interop.hf.family import ATTENTION, GATED_MLP, Family, norm
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.llama import TOP
from jaxeff.interop.hf.rope import read_rope
from jaxeff.interop.hf.tensors import Tensor
from jaxeff.interop.hf.transformer import attention_and_mlp, flagged, named_sizes, rms_norm, rotation, sizes, tied
from jaxeff.models.lm import LM
from jaxeff.models.presets.transformer import transformer

BLOCK = (
    *ATTENTION,
    *(Tensor(f"self_attn.{name}_norm.weight", {f"mixer/{name}_norm/scale": "(h c) -> h c"}) for name in "qk"),
    *norm("post_attention_layernorm", "mixer_post_norm"),
    *GATED_MLP, *norm("post_feedforward_layernorm", "mlp_post_norm"),
)  # fmt: skip


def _read(fields: Fields) -> LM:
    found = sizes(fields) | dict(norm=rms_norm(fields, 1e-5), tied=tied(fields, False), rope=read_rope(fields))
    return transformer(
        **found,
        placement="post",
        qk_norm=found["norm"],
        qk_norm_over="all",
        biases=flagged(fields, "attention_bias", "qkvo"),
    )


def _write(model: LM) -> dict[str, Any]:
    mixers, _ = attention_and_mlp(model)
    return named_sizes(model) | rotation(mixers) | {"attention_bias": bool(mixers[0].biases)}


OLMO2 = Family("olmo2", "Olmo2ForCausalLM", "model.layers.{}.", _read, _write, TOP, lambda block: BLOCK)
