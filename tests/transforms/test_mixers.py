"""Transforms reach every matrix of every mixer: decays, gates and convolutions of recurrent ones too."""

import jax
import jax.numpy as jnp
import pytest

from jaxeff.core.spec import abstract, init
from jaxeff.mixers.base import Ctx, bind
from jaxeff.mixers.registry import CHANNEL_MIXERS, MIXERS
from jaxeff.transforms import NF4, DoRA, LoRA, chain
from jaxeff.transforms.plan import weights
from tests.closeness import assert_close
from tests.compiled import apply_mixer

EVERY = MIXERS | CHANNEL_MIXERS
KEY = jax.random.key(0)
D = 16


def layer(name):
    return bind(EVERY[name](), D)


def matrices(mixer):
    return tuple((path.replace(".", r"\."), 2) for path, spec in weights(mixer.specs()).items() if spec.is_matrix)


@pytest.mark.parametrize("name", EVERY)
def test_every_matrix_may_be_a_node(name):
    mixer = layer(name)
    rules = matrices(mixer)
    specs = chain(NF4(tuple(path for path, _ in rules)), DoRA(rules)).plan(mixer.specs()).specs
    x = jax.ShapeDtypeStruct((2, 5, D), jnp.float32)
    assert jax.eval_shape(lambda params, x: mixer.apply(params, x).y, abstract(specs), x).shape == x.shape


def test_adapters_reach_what_only_recurrent_mixers_have():
    reached = {name: {path for path, _ in matrices(layer(name))} for name in EVERY}
    assert {"conv_x/w", "dt_low", "dt", "b", "c", "x", "o"} <= reached["mamba"]
    assert {"conv_x/w", "conv_b/w", "dt", "x", "o"} <= reached["mamba2"]
    assert {"decay_low", "decay_high", "rate_low", "gate_high", "r", "k", "v", "o"} <= reached["rwkv7"]
    assert {"conv_x/w", "r", "i"} <= reached["rglru"]


@pytest.mark.parametrize("name", ["gqa", "mamba", "mamba2", "rwkv7", "gated_deltanet", "rglru"])
def test_adapters_compute_what_merged_ones_do(name):
    mixer = layer(name)
    plan = LoRA(matrices(mixer)).plan(mixer.specs())
    params = plan.lift(init(mixer.specs(), KEY), KEY)
    params = jax.tree.map(lambda x: x + 0.02 * jax.random.normal(KEY, x.shape), params)
    x = jax.random.normal(KEY, (2, 5, D))
    found, merged = (apply_mixer(mixer, p, x, None, Ctx()) for p in (params, plan.merge(params)))
    assert_close(found.y, merged.y, 2e-5)
