"""Mixers, blocks and models as Equinox modules. B batch, T time, D model."""

import dataclasses
import runpy
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff import init
from jaxeff.core.errors import UserError
from jaxeff.core.tree import paths
from jaxeff.interop.equinox import as_equinox
from jaxeff.mixers.base import Ctx
from jaxeff.transforms import NF4, LoRA, PromptTuning, chain
from tests.closeness import assert_close
from tests.documented import ROOT
from tests.interop.parts import (
    ATTENTION,
    BLOCK,
    MODEL,
    NAMES,
    TOKENS,
    WHOLES,
    B,
    D,
    T,
    assert_agrees,
    input_of,
    part_of,
    values,
)

KEY = jax.random.key(0)
X = jnp.asarray(input_of(BLOCK))


@eqx.filter_jit
def call(module, x):
    return module(x)


@eqx.filter_jit
def one_by_one(module, x):
    """Outputs of a module, sequence by sequence."""
    return jax.vmap(module)(x)


@pytest.mark.parametrize("name", [*NAMES, *WHOLES])
def test_it_agrees_with_the_bare_part(name):
    """For a batch it is the bare part, for one sequence the bare part of a batch of one; and it can be mapped over sequences."""
    part, params = part_of(name), values(part_of(name))
    x = input_of(part)
    module = as_equinox(part, params=params)
    assert paths(module.params).keys() == paths(part.specs()).keys()
    apply = lambda params, x: as_equinox(part, params=params)(x)
    assert_agrees(apply, part, 2e-5)
    found, expected = (
        jax.make_jaxpr(f)(params, x[0]) for f in (apply, lambda params, x: part.apply(params, x[None]).y[0])
    )
    assert str(found.jaxpr) == str(expected.jaxpr)
    assert_close(found.consts, expected.consts, 0)
    assert eqx.filter_eval_shape(one_by_one, module, x).shape == jax.eval_shape(apply, params, x).shape


@pytest.mark.parametrize("name", ["gqa", "mamba2", "rwkv7_channel", "lm"])
def test_sequences_mapped_over_are_those_of_the_batch(name):
    part = part_of(name)
    module, x = as_equinox(part, params=values(part)), jnp.asarray(input_of(part))
    assert_close(one_by_one(module, x), call(module, x), 2e-5)


def test_initial_values_are_ours():
    assert_close(as_equinox(BLOCK, key=KEY).params, init(BLOCK.specs(), KEY), 0.0)


@pytest.mark.parametrize("name", ["gqa", "rwkv4_channel", "lm"])
def test_steps_equal_the_whole(name):
    part = part_of(name)
    module, x = as_equinox(part, params=values(part)), jnp.asarray(input_of(part))

    @eqx.filter_jit
    def decoded(module, x):
        def step(state, x):
            out = module.out(x[None], state)
            return out.state, out.y[0]

        return jax.lax.scan(step, module.init_state(max_len=T), x)[1]

    assert_close(eqx.filter_vmap(decoded, in_axes=(None, 0))(module, x), call(module, x), 2e-5)


def test_a_batch_is_read_and_gone_on_with():
    module = as_equinox(BLOCK, key=KEY)

    @eqx.filter_jit
    def halves(module, x):
        out = module.out(x[:, :3], module.init_state(B, T))
        return module.out(x[:, 3:], out.state).y

    assert_close(halves(module, X), call(module, X)[:, 3:], 2e-5)


def test_a_round_trip_through_a_file(tmp_path):
    module = as_equinox(MODEL, params=jax.tree.map(jnp.asarray, values(MODEL)))
    eqx.tree_serialise_leaves(tmp_path / "model.eqx", module)
    like = eqx.filter_eval_shape(as_equinox, MODEL, key=KEY)
    found = eqx.tree_deserialise_leaves(tmp_path / "model.eqx", like)
    assert eqx.tree_equal(found, module)


def test_an_ensemble():
    modules = eqx.filter_vmap(lambda key: as_equinox(BLOCK, key=key))(jax.random.split(KEY, 3))
    y = eqx.filter_vmap(call, in_axes=(eqx.if_array(0), None))(modules, X)
    second = jax.tree.map(lambda leaf: leaf[1] if eqx.is_array(leaf) else leaf, modules)
    assert_close(y[1], call(second, X), 1e-5)


def test_it_stands_among_equinox_layers():
    keys = jax.random.split(KEY)
    norm = eqx.nn.Lambda(jax.vmap(eqx.nn.LayerNorm(D)))
    both = eqx.nn.Sequential([as_equinox(ATTENTION, key=keys[0]), norm, as_equinox(BLOCK, key=keys[1])])
    assert call(both, X[0]).shape == (T, D)


def test_dropout_follows_the_key():
    module = as_equinox(dataclasses.replace(BLOCK, dropout=0.5), key=KEY)
    dropped = eqx.filter_jit(lambda key: module(X, key=key))
    assert not np.allclose(dropped(jax.random.key(1)), dropped(jax.random.key(2)))
    assert_close(dropped(None), call(as_equinox(BLOCK, key=KEY), X), 1e-5)


def test_segments_of_one_sequence():
    module = as_equinox(ATTENTION, key=KEY)
    y = eqx.filter_jit(module.out)(X[0], ctx=Ctx(segment_ids=jnp.array([1, 1, 1, 2, 2]))).y
    assert_close(y[3:], call(module, X[0, 3:]), 1e-5)


def test_adapters_train_over_packed_weights():
    plan = chain(NF4(("q|k|v",)), LoRA(("q|v",), rank=2)).plan(ATTENTION.specs())
    adapted = as_equinox(ATTENTION, params=jax.jit(plan.lift)(values(ATTENTION), KEY))
    grads = eqx.filter_jit(eqx.filter_grad(lambda module: jnp.sum(module(X))))(adapted)
    assert grads.params["q"].b.shape == adapted.params["q"].b.shape and grads.params["q"].base.codes is None


def test_errors():
    with pytest.raises(UserError, match="either a key"):
        as_equinox(BLOCK)
    with pytest.raises(UserError, match=r"Block takes float32 of shape \[T, D\] or \[B, T, D\], found \[16\]"):
        as_equinox(BLOCK, key=KEY)(X[0, 0])


def test_without_equinox():
    code = "import sys; sys.modules['equinox'] = None; import jaxeff.interop.equinox"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.strip().endswith(
        "UserError: jaxeff.interop.equinox needs Equinox: pip install 'jaxeff[equinox]'"
    )


def test_decoding_begins_with_what_was_learned():
    params = PromptTuning(length=3).plan(MODEL.specs()).lift(values(MODEL), KEY)
    module = as_equinox(MODEL, params=params)
    whole = call(module, TOKENS)
    prefill = jax.jit(lambda module, x: module.out(x, module.init_state(B, T)).y)
    assert_close(prefill(module, TOKENS), whole, 1e-5)


def test_the_documented_script():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = runpy.run_path(str(ROOT / "docs/interop/with_equinox.py"))
    assert found["losses"][-1] < found["losses"][0] / 2
    assert found["adapted"][-1] < found["adapted"][0] - 1e-3
    assert found["text"] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]
