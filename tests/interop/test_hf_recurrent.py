"""Configurations of public recurrent models: what is understood, and one line that names what is not."""

import json
import math

import pytest

from jaxeff.core.errors import UserError
from jaxeff.interop import hf
from jaxeff.interop.hf.save import written
from jaxeff.mixers import RGLRU, RWKV4, RWKV7, Mamba, Mamba2
from jaxeff.mixers.norm import LayerNorm, RMSNorm
from jaxeff.mixers.rwkv4 import RWKV4Channel
from jaxeff.mixers.rwkv7 import RWKV7Channel
from jaxeff.models import LM, Block, Stage
from jaxeff.models.presets import PRESETS
from jaxeff.models.rwkv import rwkv7_stages

SIZES = dict(vocab_size=29, hidden_size=24, num_hidden_layers=2)
MAMBA, MAMBA2, FALCON, RWKV, GOOSE, GRIFFIN = (
    SIZES | dict(model_type="mamba", state_size=5),
    SIZES | dict(model_type="mamba2", state_size=5, num_heads=6, head_dim=8, n_groups=1),
    SIZES | dict(model_type="falcon_mamba", state_size=5),
    SIZES | dict(model_type="rwkv"),
    SIZES | dict(model_type="rwkv7", head_dim=8, fuse_norm=False),
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


def test_ranks_that_are_not_told_and_those_that_are_derived(read):
    mixer = lambda **fields: read(GOOSE | fields).stages[0].pattern[0].mixer
    assert mixer().ranks == (64, 64, 16, 128)
    names = [f"{name}_low_rank_dim" for name in ("decay", "a", "v", "gate")]
    assert mixer(hidden_size=1024, head_dim=256, **dict.fromkeys(names)).ranks == (320, 320, 224, 160)


def test_heads_are_counted_where_no_dimension_is_told(read):
    assert read(GOOSE | dict(num_heads=32)) == read(GOOSE) == read(GOOSE | dict(head_dim=None, num_heads=3))
    wide = {name: value for name, value in GOOSE.items() if name != "head_dim"} | dict(hidden_size=128, num_heads=4)
    assert read(wide).stages[0].pattern[0].mixer.head_dim == 64


def test_the_fields_of_a_published_rwkv7(read):
    ranks = dict(a_low_rank_dim=64, decay_low_rank_dim=64, gate_low_rank_dim=128, v_low_rank_dim=32)
    sizes = dict(vocab_size=65536, hidden_size=768, num_hidden_layers=12, intermediate_size=3072, hidden_ratio=4.0)
    heads = dict(head_dim=64, num_heads=32, hidden_act="sqrelu", attn=None, attn_mode="chunk", fuse_cross_entropy=True)
    norms = dict(norm_bias=True, norm_eps=1e-05, norm_first=True, fuse_norm=False, max_position_embeddings=2048)
    code = {"AutoModelForCausalLM": "modeling_rwkv7.RWKV7ForCausalLM", "AutoConfig": "modeling_rwkv7.RWKV7Config"}
    published = dict(model_type="rwkv7", tie_word_embeddings=False, initializer_range=0.006, auto_map=code)
    model = read(published | ranks | sizes | heads | norms)
    assert hf.canonical(model) == hf.canonical(PRESETS["rwkv7-0.1b"]())


def test_hidden_channels_told_as_a_ratio(read):
    channel = lambda **fields: read(GOOSE | fields).stages[0].pattern[0].mlp.d_hidden
    assert (channel(), channel(hidden_ratio=3.5, intermediate_size=None), channel(intermediate_size=20)) == (96, 96, 20)
    assert channel(hidden_ratio=4.1) == 128


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
        (GOOSE | dict(hidden_act="relu"), "hidden_act is understood as 'sqrelu' alone, found 'relu'"),
        (GOOSE | dict(fuse_norm=True), "fuse_norm must be false: .* found True"),
        (GOOSE | dict(fuse_norm=None), "fuse_norm must be false: .* found None"),
        (GOOSE | dict(norm_eps=1e-6), "norm_eps is understood as 1e-05 alone, found 1e-06"),
        (GOOSE | dict(value_dim=48), "value_dim is understood as 24 or \\[24, 24\\] alone, found 48"),
        (GOOSE | dict(value_dim=[24, 48]), "value_dim is understood as 24 or"),
        (GOOSE | dict(attn=dict(layers=[0], num_heads=2)), "attn is not understood, found {'layers'"),
        (GOOSE | dict(head_dim=None), "num_heads must divide hidden_size=24 where head_dim is null, found None"),
        (GOOSE | dict(head_dim=None, num_heads=5), "num_heads must divide hidden_size=24"),
        (GOOSE | dict(head_dim=7), "head_dim=7 does not divide d_model=24"),
        (GOOSE | dict(a_low_rank_dim=0), "ranks must be four integers of at least 1"),
        (GOOSE | dict(intermediate_size=0), "d_hidden must be at least 1"),
        (GOOSE | dict(num_hidden_layers=0), "n_layers must be at least 1"),
        (GOOSE | dict(rms_norm=True), "rms_norm=True not understood"),
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


NORM, LAYER_NORM, NO_BIAS = RMSNorm(1e-5), LayerNorm(1e-5), LayerNorm(1e-5, bias=False)


def alone(mixer, norm=NORM, mlp=None, **rest):
    return LM(29, 24, (Stage((Block(mixer, mlp, norm),), 2),), norm=norm, **rest)


def goose(norm=LAYER_NORM, last=LAYER_NORM, **mixer):
    return LM(29, 24, rwkv7_stages(2, RWKV7(head_dim=8, **mixer), norm=norm), norm=last)


@pytest.mark.parametrize(
    ("model", "family"),
    [
        (alone(Mamba(dt_range=(1e-4, 1e-2))), "mamba"),
        (alone(Mamba(bcdt_eps=1e-5, biases=("o", "x", "z"))), "falcon_mamba"),
        (alone(Mamba2(norm_groups=1, a_range=(2.0, 3.0))), "mamba2"),
        (alone(RWKV4(), LAYER_NORM, RWKV4Channel(), embed_norm=LAYER_NORM), "rwkv"),
        (goose(), "rwkv7"),
        (goose(NO_BIAS, NO_BIAS, ranks=(1, 2, 3, 4)), "rwkv7"),
        (PRESETS["rwkv7-0.1b"](), "rwkv7"),
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
        (alone(Mamba()), "rwkv7", "a layer is not RWKV-7's two mixers"),
        (alone(RWKV7(), LAYER_NORM), "rwkv7", "a layer is not RWKV-7's two mixers"),
        (
            alone(RWKV7(), LAYER_NORM, RWKV7Channel()),
            "rwkv7",
            "value_residual is not False in the first layer and True in all",
        ),
        (goose(negative=True), "rwkv7", "mixer.negative is True"),
        (goose(last=NO_BIAS), "rwkv7", "norm.bias is False, where it would be True"),
        (goose(LayerNorm(1e-6), LayerNorm(1e-6)), "rwkv7", "norm_eps is understood as 1e-05 alone"),
        (PRESETS["llama-3.2-1b"](), "recurrent_gemma", "a layer's attention has no window, or no rotation"),
    ],
)
def test_models_that_a_family_does_not_hold(model, family, message):
    with pytest.raises(UserError, match=message):
        written(model, family)
