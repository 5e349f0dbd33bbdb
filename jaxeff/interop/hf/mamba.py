"""Mamba, as state-spaces/mamba-*-hf has it: `in_proj` is x and z, `x_proj` the low-rank dt, b and c."""

from typing import Any

from jaxeff.interop.hf.family import Family, embedding, layers, norm
from jaxeff.interop.hf.fields import Fields
from jaxeff.interop.hf.tensors import Tensor
from jaxeff.mixers.mamba import Mamba
from jaxeff.mixers.norm import RMSNorm
from jaxeff.mixers.short_conv import ShortConv
from jaxeff.models.lm import LM
from jaxeff.models.presets.mamba import mamba

TOP = (*embedding("backbone.embeddings"), *norm("backbone.norm_f", "norm"))
MIXER = (
    Tensor("mixer.in_proj.weight", {"mixer/x": "c d -> d c", "mixer/z": "c d -> d c"}),
    Tensor("mixer.in_proj.bias", {"mixer/x_bias": "c -> c", "mixer/z_bias": "c -> c"}),
    Tensor("mixer.conv1d.weight", {"mixer/conv_x/w": "c 1 w -> w c"}),
    Tensor("mixer.conv1d.bias", {"mixer/conv_x/bias": "c -> c"}),
    Tensor("mixer.x_proj.weight", {"mixer/dt_low": "r c -> c r", "mixer/b": "n c -> c n", "mixer/c": "n c -> c n"}),
    Tensor("mixer.dt_proj.weight", {"mixer/dt": "c r -> r c"}),
    Tensor("mixer.dt_proj.bias", {"mixer/dt_bias": "c -> c"}),
    Tensor("mixer.A_log", {"mixer/a_log": "c n -> c n"}),
    Tensor("mixer.D", {"mixer/skip": "c -> c"}),
    Tensor("mixer.out_proj.weight", {"mixer/o": "d c -> c d"}),
    Tensor("mixer.out_proj.bias", {"mixer/o_bias": "d -> d"}),
)
BLOCK = (*norm("norm", "mixer_norm"), *MIXER)
# Initial values; how the scan is computed; sizes and settings of the first code, which are told once more.
HARMLESS = frozenset(
    {
        "d_inner", "d_model", "fused_add_norm", "n_layer", "pad_vocab_size_multiple", "rescale_prenorm_residual",
        "residual_in_fp32", "time_step_floor", "time_step_init_scheme", "time_step_max", "time_step_min", "time_step_scale",
        "use_associative_scan", "use_falcon_mambapy", "use_mambapy",
    }
)  # fmt: skip


def sizes(fields: Fields, tied: bool) -> dict[str, Any]:
    """What all kinds of Mamba call alike. tied: where the configuration does not tell.

    Raises UserError for an activation but silu, which not all code applies in the same places, and for other norms.
    """
    fields.only("hidden_act", "silu", "swish")
    fields.only("rms_norm", True)
    fields.only("ssm_cfg", {})
    return dict(
        vocab_size=fields("vocab_size", int),
        d_model=fields("hidden_size", int),
        n_layers=fields("num_hidden_layers", int),
        d_state=fields("state_size", int),
        expand=fields("expand", int, 2),
        conv=ShortConv(fields("conv_kernel", int, 4), fields("use_conv_bias", bool, True)),
        norm=RMSNorm(fields("layer_norm_epsilon", float, 1e-5)),
        tied=fields("tie_word_embeddings", bool, tied),
    )


def mixer_of(model: LM, kind: type) -> Any:
    """That of the first layer. Raises LookupError where a layer is not one of this kind alone."""
    blocks = layers(model)
    if not all(isinstance(block.mixer, kind) and block.mlp is None for block in blocks):
        raise LookupError(f"a layer is not {kind.__name__} alone")
    return blocks[0].mixer


def named_sizes(model: LM, mixer: Any) -> dict[str, Any]:
    """The fields that `sizes` reads."""
    return dict(
        vocab_size=model.vocab_size,
        hidden_size=model.d_model,
        num_hidden_layers=model.n_layers,
        state_size=mixer.d_state,
        expand=mixer.expand,
        conv_kernel=mixer.conv.width,
        use_conv_bias=mixer.conv.bias,
        hidden_act="silu",
        layer_norm_epsilon=model.norm.eps,
        tie_word_embeddings=model.tied,
    )


def read(fields: Fields, bcdt_eps: float | None = None) -> LM:
    """A model of Mamba layers. bcdt_eps: of the norms of Falcon-Mamba."""
    found = sizes(fields, True)
    fields.only("intermediate_size", found["expand"] * found["d_model"])
    biases = ("z", "x", "o") if fields("use_bias", bool, False) else ()
    return mamba(**found, dt_rank=fields("time_step_rank", int, None), bcdt_eps=bcdt_eps, biases=biases)


def write(model: LM) -> dict[str, Any]:
    """The fields that `read` reads."""
    mixer = mixer_of(model, Mamba)
    return named_sizes(model, mixer) | {
        "intermediate_size": mixer.inner,
        "time_step_rank": mixer.rank,
        "use_bias": bool(mixer.biases),
    }


def family(model_type: str, architecture: str, read, write, block=BLOCK, harmless=HARMLESS) -> Family:
    """One whose names outside of layers are Mamba's."""
    return Family(
        model_type, architecture, "backbone.layers.{}.", read, write, TOP, lambda _: block,
        prefix="backbone.", harmless=harmless,
    )  # fmt: skip


MAMBA = family("mamba", "MambaForCausalLM", read, write)
