"""Transforms reach every matrix of every mixer, decays, gates and convolutions of recurrent ones too, and keep their laws there.

Each mixer stands in a stack of two layers with adapters of several kinds on its matrices by turns. Numbers are random in place of
trained ones, and three programs of a mixer serve all laws.

A start without effect is the same to the last bit in every product, see `test_nodes`. In a whole program the compiler fuses a sum
with what follows it, and may round it otherwise.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.spec import abstract
from jaxeff.core.tree import combine, partition, paths
from jaxeff.mixers.base import bind
from jaxeff.mixers.registry import CHANNEL_MIXERS, MIXERS
from jaxeff.models import Block, Stage
from jaxeff.models.rwkv import rwkv7_stages
from jaxeff.models.stack import Stack
from jaxeff.transforms import IA3, NF4, DoRA, LoRA, VeRA, chain
from jaxeff.transforms.plan import weights
from tests.closeness import assert_close

EVERY = MIXERS | CHANNEL_MIXERS
KEY = jax.random.key(0)
D, T = 16, 7
X, WEIGH = np.random.default_rng(0).standard_normal((2, 1, T, D)).astype(np.float32)
# All laws of a mixer follow each other.
every_mixer = pytest.mark.parametrize("name", EVERY, scope="module")


def layer(name):
    return bind(EVERY[name](), D)


def matrices(layer):
    return [path.replace(".", r"\.") for path, spec in weights(layer.specs()).items() if spec.is_matrix]


@functools.cache
def stack(name, **options):
    stages = rwkv7_stages(2, channel=None) if name == "rwkv7" else (Stage((Block(EVERY[name](), None),), 2),)
    return Stack(stages, D, **options)


def by_turns(rules):
    """LoRA, VeRA and IA3, each on every third."""
    lora, vera, ia3 = (rules[first::3] for first in range(3))
    adapters = LoRA(tuple((path, 2) for path in lora)), VeRA(tuple((path, 2) for path in vera))
    # A mixer of two matrices has none for the third.
    return chain(*adapters, *([IA3(tuple(zip(ia3, ("in", "out") * len(ia3))))] if ia3 else []))


@functools.cache
def plan(name):
    return by_turns(matrices(stack(name))).plan(stack(name).specs())


@functools.cache
def base(name):
    """Away from initial values, some of which are zero."""
    r = np.random.default_rng(2)
    return jax.tree.map(lambda x: (0.3 * r.standard_normal(x.shape)).astype(x.dtype), abstract(stack(name).specs()))


def split(name, params):
    """(what trains, the rest)."""
    return partition(params, lambda path, _: plan(name).trains(path))


@functools.cache
def fresh(name):
    return jax.tree.map(np.asarray, jax.jit(plan(name).lift)(base(name), KEY))


@functools.cache
def noisy(name):
    """As if trained: something added to all that trains."""
    r = np.random.default_rng(3)
    kept, rest = split(name, fresh(name))
    return combine(jax.tree.map(lambda x: x + (0.1 * r.standard_normal(x.shape)).astype(x.dtype), kept), rest)


@functools.partial(jax.jit, static_argnums=0)
def merge_and_compute(name, params):
    """(the merged parameters, what the stack makes of X with them)."""
    merged = plan(name).merge(params)
    return merged, stack(name).apply(merged, X).y


@functools.cache
def merged(name, params):
    return jax.tree.map(np.asarray, merge_and_compute(name, params(name)))


@functools.partial(jax.jit, static_argnums=0)
def gradients(name, trained, frozen):
    """((loss, output), gradients) for what trains, through scan and remat."""

    def loss(trained):
        y = stack(name, remat="full").apply(combine(trained, frozen), X).y
        return jnp.sum(WEIGH * y), y

    return jax.value_and_grad(loss, has_aux=True)(trained)


@functools.cache
def learned(name, params):
    return jax.tree.map(np.asarray, gradients(name, *split(name, params(name))))


@every_mixer
def test_every_matrix_may_be_a_node(name):
    mixer = layer(name)
    rules = tuple(matrices(mixer))
    specs = chain(NF4(rules), DoRA(tuple((path, 2) for path in rules))).plan(mixer.specs()).specs
    x = jax.ShapeDtypeStruct((2, 5, D), jnp.float32)
    assert jax.eval_shape(lambda params, x: mixer.apply(params, x).y, abstract(specs), x).shape == x.shape


def test_adapters_reach_what_only_recurrent_mixers_have():
    reached = {name: set(matrices(layer(name))) for name in EVERY}
    assert {"conv_x/w", "dt_low", "dt", "b", "c", "x", "o"} <= reached["mamba"]
    assert {"conv_x/w", "conv_b/w", "dt", "x", "o"} <= reached["mamba2"]
    assert {"decay_low", "decay_high", "rate_low", "gate_high", "r", "k", "v", "o"} <= reached["rwkv7"]
    assert {"conv_x/w", "r", "i"} <= reached["rglru"]


@every_mixer
def test_values_have_the_structure_of_the_specs_and_merge_into_the_base(name):
    shape = lambda x: (x.shape, x.dtype)
    assert jax.tree.map(shape, fresh(name)) == jax.tree.map(shape, abstract(plan(name).specs))
    assert jax.tree.all(jax.tree.map(np.array_equal, merged(name, fresh)[0], base(name)))


@every_mixer
def test_adapters_change_nothing_at_the_start_and_then_what_merged_ones_do(name):
    (_, before), (_, after) = (merged(name, params) for params in (fresh, noisy))
    assert_close(learned(name, fresh)[0][1], before, 1e-6)
    assert_close(learned(name, noisy)[0][1], after, 2e-5)
    assert np.abs(after - before).max() > 1e-3 * np.abs(before).max()


@every_mixer
def test_adapters_learn_under_scan_and_remat(name):
    _, grads = learned(name, noisy)
    trained, frozen = split(name, noisy(name))
    # The adapters alone have gradients, those of every matrix and all of their factors.
    found = paths(grads)
    assert found.keys() == paths(trained).keys()
    assert {path.rpartition("/")[0] for path in found} == {path.replace("\\", "") for path in matrices(stack(name))}
    for path, gradient in found.items():
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, path
    # Along the gradient the loss changes by its norm.
    norm = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in found.values()))
    moved = lambda size: jax.tree.map(lambda x, g: x + size / norm * g, trained, grads)
    there, back = (gradients(name, moved(size), frozen)[0][0] for size in (3e-3, -3e-3))
    assert_close((there - back) / 6e-3, norm, 2e-2)


@pytest.mark.parametrize("name", ["gqa", "mamba2", "rwkv7"])
def test_adapters_under_vmap(name):
    both = jax.tree.map(lambda *x: np.stack(x), fresh(name), noisy(name))
    found = jax.jit(jax.vmap(lambda params: stack(name).apply(params, X).y))(both)
    assert_close(found[0], merged(name, fresh)[1], 1e-5)
    assert_close(found[1], merged(name, noisy)[1], 2e-5)
