"""Transforms reach every matrix of every mixer, decays, gates and convolutions of recurrent ones too, and keep their laws there.

Each mixer stands in a model of two layers, under a scan: with LoRA on all its matrices, and with other adapters on them by turns.
Its three programs are compiled once for all laws, and numbers are random in place of trained ones. T is odd.
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
from jaxeff.models import LM, Block, Stage
from jaxeff.models.rwkv import rwkv7_stages
from jaxeff.transforms import IA3, NF4, AdaLoRA, DoRA, LoRA, VeRA, chain
from jaxeff.transforms.plan import weights
from tests.closeness import assert_close

EVERY = MIXERS | CHANNEL_MIXERS
KEY = jax.random.key(0)
D, V, T = 16, 17, 7
TOKENS = np.random.default_rng(0).integers(0, V, (1, T)).astype(np.int32)
WEIGH = np.random.default_rng(1).standard_normal((1, T, V)).astype(np.float32)
# All laws of a mixer follow each other.
every_mixer = pytest.mark.parametrize("name", EVERY, scope="module")


def layer(name):
    return bind(EVERY[name](), D)


def matrices(layer):
    return [path.replace(".", r"\.") for path, spec in weights(layer.specs()).items() if spec.is_matrix]


@functools.cache
def model(name):
    stages = rwkv7_stages(2, channel=None) if name == "rwkv7" else (Stage((Block(EVERY[name](), None),), 2),)
    return LM(V, D, stages, remat="full")


def on_all(rules):
    return LoRA(tuple((path, 2) for path in rules))


def by_turns(rules):
    """LoRA, VeRA, AdaLoRA and IA3, each on every fourth."""
    lora, vera, adalora, ia3 = (rules[i::4] for i in range(4))
    some = [LoRA(tuple((path, 2) for path in lora)), VeRA(tuple((path, 4) for path in vera))]
    some.append(AdaLoRA(tuple((path, 2) for path in adalora), target=1.0))
    if ia3:
        some.append(IA3(tuple((path, side) for path, side in zip(ia3, ("in", "out") * len(ia3)))))
    return chain(*some)


MAKERS = {"LoRA on all": on_all, "others by turns": by_turns}
every_adapter = pytest.mark.parametrize("adapters", MAKERS, scope="module")


@functools.cache
def plan(name, adapters):
    return MAKERS[adapters](matrices(model(name))).plan(model(name).specs())


@functools.cache
def base(name):
    """Away from initial values, some of which are zero."""
    r = np.random.default_rng(2)
    return jax.tree.map(lambda x: (0.3 * r.standard_normal(x.shape)).astype(x.dtype), abstract(model(name).specs()))


@functools.cache
def fresh(name, adapters):
    return plan(name, adapters).lift(base(name), KEY)


@functools.cache
def noisy(name, adapters):
    """As if trained: something added to all that trains."""
    r, trains = np.random.default_rng(3), plan(name, adapters).trains
    kept, rest = partition(fresh(name, adapters), lambda path, _: trains(path))
    add = lambda x: np.asarray(x) + (0.1 * r.standard_normal(x.shape)).astype(x.dtype)
    return combine(jax.tree.map(add, kept), rest)


@functools.cache
def merged(name, adapters):
    return plan(name, adapters).merge(noisy(name, adapters))


# A sum that is fused with other operations may be rounded otherwise: not here, where bits are compared.
@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_disable_hlo_passes": "fusion"})
def logits(name, one, other):
    """Those of two trees of parameters, under `vmap`."""
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), one, other)
    return jax.vmap(lambda params: model(name).apply(params, TOKENS).y)(both)


@functools.partial(jax.jit, static_argnums=0)
def gradients(name, trained, frozen):
    """((loss, logits), gradients) for what trains, through scan and remat."""

    def loss(trained):
        y = model(name).apply(combine(trained, frozen), TOKENS).y
        return jnp.sum(WEIGH * y), y

    return jax.value_and_grad(loss, has_aux=True)(trained)


def split(name, params):
    return partition(params, lambda path, _: plan(name, "LoRA on all").trains(path))


@functools.cache
def plain(name):
    """Of the base, and of what the others by turns merge into."""
    return np.asarray(logits(name, base(name), merged(name, "others by turns")))


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
@every_adapter
def test_values_have_the_structure_of_the_specs_and_merge_into_the_base(name, adapters):
    shape = lambda x: (x.shape, x.dtype)
    declared = abstract(plan(name, adapters).specs)
    assert jax.tree.map(shape, fresh(name, adapters)) == jax.tree.map(shape, declared)
    assert jax.tree.all(jax.tree.map(np.array_equal, plan(name, adapters).merge(fresh(name, adapters)), base(name)))


@every_mixer
def test_adapters_change_nothing_at_the_start_and_then_what_merged_ones_do(name):
    start, after = logits(name, fresh(name, "others by turns"), noisy(name, "others by turns"))
    before, expected = plain(name)
    assert np.array_equal(start, before)
    assert_close(after, expected, 2e-5)
    assert np.abs(after - before).max() > 1e-3 * np.abs(before).max()


@every_mixer
def test_lora_on_every_matrix_computes_and_learns_as_it_should(name):
    trained, frozen = split(name, noisy(name, "LoRA on all"))
    (_, y), grads = gradients(name, trained, frozen)
    assert_close(y, logits(name, *2 * (merged(name, "LoRA on all"),))[0], 2e-5)
    assert_close(gradients(name, *split(name, fresh(name, "LoRA on all")))[0][1], plain(name)[0], 1e-6)
    # The factors alone have gradients, all of them, and these say how the loss changes.
    found = paths(grads)
    assert set(found) == {f"{path}/{factor}" for path in matrices(model(name)) for factor in "ab"}
    for path, gradient in found.items():
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, path
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in found.values()))
    moved = lambda size: jax.tree.map(lambda x, g: np.asarray(x + size / norm * g), trained, grads)
    there, back = (gradients(name, moved(size), frozen)[0][0] for size in (1e-2, -1e-2))
    assert_close((there - back) / 2e-2, norm, 2e-2)
