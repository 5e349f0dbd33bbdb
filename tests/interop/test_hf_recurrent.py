"""Configurations of public recurrent models: what is understood, and one line that names what is not."""

import json
import math

import pytest

from jaxeff.core.errors import UserError
from jaxeff.interop import hf
from jaxeff.interop.hf.save import written
from jaxeff.mixers import RGLRU, RWKV4, Mamba, Mamba2
from jaxeff.mixers.norm import LayerNorm, RMSNorm
from jaxeff.mixers.rwkv4 import RWKV4Channel
from jaxeff.models import LM, Block, Stage
from jaxeff.models.presets import PRESETS

SIZES = dict(vocab_size=29, hidden_size=24, num_hidden_layers=2)
MAMBA, MAMBA2, FALCON, RWKV, GRIFFIN = (
    SIZES | dict(model_type="mamba", state_size=5),
    SIZES | dict(model_type="mamba2", state_size=5, num_heads=6, head_dim=8, n_groups=1),
    SIZES | dict(model_type="falcon_mamba", state_size=5),
    SIZES | dict(model_type="rwkv"),
    SIZES | dict(model_type="recurrent_gemma", intermediate_size=40, num_attention_heads=3),
)


@pytest.fixture
def read(tmp_path):
    """fields -> the model that they describe."""

    def read(fields):
        (tmp_path / "config.json").write_text(json.dumps(fields))
        return hf.read_config(tmp_path)[1]

    return read


def test_the_fields_of_the_first_code_tell_nothing_new(read):
    first = dict(
        d_inner=48, d_model=24, n_layer=2, rms_norm=True, ssm_cfg={}, fused_add_norm=True, intermediate_size=48
    )
    assert read(MAMBA | first) == read(MAMBA)


@pytest.mark.parametrize("high", [math.inf, {"__float__": "Infinity"}])
def test_no_limit_of_dt(read, high):
    assert read(MAMBA2 | dict(time_step_limit=[0.0, high])) == read(MAMBA2)
    assert read(MAMBA2 | dict(time_step_limit=[0.1, high])).stages[0].pattern[0].mixer.dt_limit == (0.1, math.inf)


def test_a_pattern_of_layers_is_repeated_and_cut_off(read):
    model = read(GRIFFIN | dict(num_hidden_layers=8))
    kinds = [isinstance(place.block.mixer, RGLRU) for place in model.stack for _ in range(place.repeats)]
    assert model.n_layers == 8 and sum(kinds) == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (MAMBA | dict(hidden_act="gelu"), "hidden_act is understood as 'silu' or 'swish' alone, found 'gelu'"),
        (MAMBA | dict(rms_norm=False), "rms_norm is understood as True alone, found False"),
        (MAMBA | dict(intermediate_size=50), "intermediate_size is understood as 48 alone, found 50"),
        (MAMBA | dict(mixer_rms_eps=1e-6), "mixer_rms_eps=1e-06 not understood"),
        (MAMBA2 | dict(use_bias=True), "use_bias is understood as False alone, found True"),
        (MAMBA2 | dict(num_heads=5), "num_heads is understood as 6 alone, found 5"),
        (MAMBA2 | dict(n_groups=4), "n_groups=4 does not divide 6 heads"),
        (MAMBA2 | dict(time_step_limit=[0.1]), "time_step_limit must be two numbers"),
        (FALCON | dict(mixer_rms_eps=0.0), "bcdt_eps must be above 0"),
        (RWKV | dict(hidden_act="relu"), "hidden_act='relu' not understood"),
        (GRIFFIN | dict(hidden_activation="silu"), "hidden_activation is understood as 'gelu_pytorch_tanh' or 'gelu_new'"),
        (GRIFFIN | dict(embeddings_scale_by_sqrt_dim=False), "embeddings_scale_by_sqrt_dim is understood as True alone"),
        (GRIFFIN | dict(block_types=["recurrent", "mlp"]), "block_types must be made of 'recurrent' and 'attention'"),
        (GRIFFIN | dict(block_types=[]), "block_types must be made of"),
        (GRIFFIN | dict(intermediate_size=41), "intermediate_size must be even"),
        (GRIFFIN | dict(rope_scaling=dict(type="linear", factor=2.0)), "rope_scaling must not scale"),
        (GRIFFIN | dict(lru_width=25), "n_heads=3 does not divide d_rnn=25"),
    ],
)  # fmt: skip
def test_what_is_not_understood(read, fields, message):
    with pytest.raises(UserError, match=message):
        read(fields)


NORM, LAYER_NORM = RMSNorm(1e-5), LayerNorm(1e-5)


def alone(mixer, norm=NORM, mlp=None, **rest):
    return LM(29, 24, (Stage((Block(mixer, mlp, norm),), 2),), norm=norm, **rest)


@pytest.mark.parametrize(
    ("model", "family"),
    [
        (alone(Mamba(dt_range=(1e-4, 1e-2))), "mamba"),
        (alone(Mamba(bcdt_eps=1e-5, biases=("o", "x", "z"))), "falcon_mamba"),
        (alone(Mamba2(norm_groups=1, a_range=(2.0, 3.0))), "mamba2"),
        (alone(RWKV4(), LAYER_NORM, RWKV4Channel(), embed_norm=LAYER_NORM), "rwkv"),
        (PRESETS["recurrentgemma-2b"](), "recurrent_gemma"),
    ],
)
def test_models_made_here_have_a_family(model, family):
    assert written(model)[0].model_type == family


@pytest.mark.parametrize(
    ("model", "family", "message"),
    [
        (alone(Mamba()), "mamba2", "a layer is not Mamba2 alone"),
        (alone(Mamba()), "rwkv", "a layer is not RWKV-4's two mixers"),
        (alone(Mamba()), "recurrent_gemma", "a layer is neither Griffin's nor attention"),
        (alone(Mamba()), "falcon_mamba", "mixer.bcdt_eps is None, where it would be 1e-06"),
        (alone(Mamba(biases=("o",))), "mamba", "mixer.biases"),
        (alone(Mamba2(norm_before_gate=True)), "mamba2", "mixer.norm_before_gate is True"),
        (alone(RWKV4(), LAYER_NORM, RWKV4Channel()), "rwkv", "embed_norm is None"),
        (PRESETS["llama-3.2-1b"](), "recurrent_gemma", "a layer's attention has no window, or no rotation"),
    ],
)
def test_models_that_a_family_does_not_hold(model, family, message):
    with pytest.raises(UserError, match=message):
        written(model, family)
