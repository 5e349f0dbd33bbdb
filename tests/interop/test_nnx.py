"""Modules of Flax NNX: what their users do with a module, done to every mixer, a block and a model. B batch, T time, D model."""

import functools
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import jaxeff
from jaxeff.core.sharding import RULES
from jaxeff.core.spec import Spec
from jaxeff.core.tree import paths
from jaxeff.interop.nnx import as_nnx
from jaxeff.mixers.base import Ctx
from jaxeff.models import Block
from tests.closeness import assert_close
from tests.documented import ROOT
from tests.interop.parts import (
    ATTENTION,
    BLOCK,
    MODEL,
    NAMES,
    RECURRENCE,
    B,
    D,
    T,
    X,
    assert_agrees,
    input_of,
    part_of,
    values,
)
from tests.models.toy_mixers import FirstValue, Ones, Shift, Told, Toy

KEY = jax.random.key(0)
decode = nnx.jit(lambda module, x: module(x, decode=True))
by_type = functools.partial(pytest.mark.parametrize, "part", ids=lambda part: type(part).__name__)


def abstract(part):
    """The module with shapes for values: nothing is compiled."""
    return nnx.eval_shape(lambda: as_nnx(part, rngs=nnx.Rngs(0)))


def filled(part):
    """The module with `values(part)`."""
    return nnx.merge(nnx.graphdef(abstract(part)), values(part))


@pytest.mark.parametrize("name", [*NAMES, "block", "lm"])
def test_outputs_and_gradients_are_those_of_the_bare_form(name):
    part = part_of(name)
    graph = nnx.graphdef(abstract(part))
    apply = lambda params, x: nnx.merge(graph, params)(x)
    assert_agrees(apply, part, 1e-6)


@pytest.mark.parametrize("name", [*NAMES, "block", "lm"])
def test_parameters_have_the_names_shapes_and_axes_of_the_specs(name):
    part = part_of(name)
    state = nnx.state(abstract(part))
    expected = paths(part.specs())
    assert {path: leaf.shape for path, leaf in paths(nnx.to_pure_dict(state)).items()} == {
        path: spec.shape for path, spec in expected.items()
    }
    found = paths(nnx.to_pure_dict(nnx.get_partition_spec(state)), is_leaf=lambda x: isinstance(x, PartitionSpec))
    assert found == {path: PartitionSpec(*spec.axes) for path, spec in expected.items()}


def test_initial_values_are_those_of_the_params_stream():
    module = as_nnx(ATTENTION, rngs=nnx.Rngs(params=3))
    assert_close(nnx.to_pure_dict(nnx.state(module)), jaxeff.init(ATTENTION.specs(), nnx.Rngs(params=3).params()), 0)


def test_gradients_and_optimizers_of_nnx():
    module, x = filled(MODEL), input_of(MODEL)
    optimizer = nnx.Optimizer(module, optax.sgd(1e-3), wrt=nnx.Param)
    loss = lambda module: jnp.mean(jnp.square(module(x)))

    @nnx.jit
    def step(module, optimizer):
        value, gradients = nnx.value_and_grad(loss)(module)
        optimizer.update(module, gradients)
        return value, gradients

    with jax.numpy_dtype_promotion("standard"):
        (before, gradients), (after, _) = step(module, optimizer), step(module, optimizer)
    assert after < before
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients))


@by_type([ATTENTION, BLOCK, MODEL])
def test_token_after_token_is_the_whole(part):
    module, x = filled(part), input_of(part)
    whole = nnx.jit(lambda module, x: module(x))(module, x)
    module.init_state(B, T)
    outputs = [decode(module, x[:, :2])] + [decode(module, x[:, t : t + 1]) for t in range(2, T)]
    assert_close(np.concatenate(outputs, axis=1), whole, 1e-5)
    assert len(nnx.to_flat_state(nnx.state(module, nnx.Cache))) == len(paths(part.init_state(B, T, jnp.float32)))
    module.init_state(B, T)
    module.set_attributes(decode=True)
    assert_close(nnx.jit(lambda module, x: module(x))(module, x), whole, 1e-5)


def test_decoding_without_a_state_says_what_is_missing():
    with pytest.raises(ValueError, match=r"call init_state\(batch, max_len\) first"):
        filled(ATTENTION)(X, decode=True)


def test_a_state_survives_a_pure_dict():
    module, fresh = filled(MODEL), filled(MODEL)
    module.init_state(B, T)
    fresh.init_state(B, T)
    decode(module, input_of(MODEL))
    state = nnx.state(fresh)
    nnx.replace_by_pure_dict(state, nnx.to_pure_dict(nnx.state(module)))
    nnx.update(fresh, state)
    assert_close(nnx.to_pure_dict(nnx.state(fresh)), nnx.to_pure_dict(nnx.state(module)), 0)


def test_shared_values_come_in_and_go_out_and_aux_is_captured():
    first, shift, told = (filled(make(D)) for make in (FirstValue, Shift, Told))
    out = first.out(X)
    assert list(out.shared) == ["v_first"] and out.state is None
    ctx = Ctx().sharing(out.shared)
    assert_close(shift(X, ctx), Shift(D).apply(values(Shift(D)), X, ctx=ctx).y, 1e-6)
    y, captured = nnx.capture(told, nnx.Intermediate)(X)
    assert_close(captured["loss"][0], 0.1 * jnp.mean(y**2), 1e-6)
    assert_close(told.out(X).aux["loss"], captured["loss"][0], 1e-6)


def test_the_dropout_stream_turns_dropout_on():
    module = filled(Block(Ones(), mlp=None, dropout=0.5).bind(D))
    rngs = nnx.Rngs(dropout=0)
    assert_close(module(X) - X, np.ones_like(X), 1e-6)
    one, two = module(X, rngs=rngs) - X, module(X, rngs=rngs) - X
    assert set(np.round(np.unique(one))) == {0, 2} and np.any(one != two)


def test_a_parameter_may_not_hide_something_of_the_module():
    class Bad(Toy):
        def specs(self):
            return {"out": Spec((2,), (None,), n_in=0)}

    with pytest.raises(ValueError, match="Bad has a parameter 'out'"):
        abstract(Bad(D))


def test_layers_made_by_vmap_are_scanned_and_recomputed():
    layers = {nnx.PARTITION_NAME: "layers"}
    make = nnx.vmap(lambda rngs: as_nnx(RECURRENCE, rngs=rngs), transform_metadata=layers)
    stacked = nnx.jit(make)(nnx.Rngs(0).split(3))
    assert nnx.get_partition_spec(nnx.state(stacked))["q"].get_value() == PartitionSpec(
        "layers", "embed", "heads", "head_dim"
    )

    def run(stacked, x, decode=False):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry, transform_metadata=layers)
        def layer(x, module):
            return x + nnx.remat(lambda module, x: module(x, decode=decode))(module, x)

        return layer(x, stacked)

    loss = lambda stacked, x: (jnp.sum(jnp.sin(y := run(stacked, x))), y)
    gradients, y = nnx.jit(nnx.grad(loss, has_aux=True))(stacked, X)

    def bare(params):
        y, _ = jax.lax.scan(lambda y, layer: (y + RECURRENCE.apply(layer, y).y, None), X, params)
        return jnp.sum(jnp.sin(y)), y

    expected = jax.jit(jax.grad(bare, has_aux=True))(nnx.to_pure_dict(nnx.state(stacked)))
    assert_close((nnx.to_pure_dict(gradients), y), expected, 1e-5)
    nnx.vmap(lambda module: module.init_state(B, T))(stacked)
    step = nnx.jit(functools.partial(run, decode=True))
    assert_close(np.concatenate([step(stacked, X[:, t : t + 1]) for t in range(T)], axis=1), y, 1e-5)


def test_laid_out_on_a_mesh_by_the_rules_of_jaxeff():
    mesh = jaxeff.make_mesh(fsdp=2, tensor=2)

    @nnx.jit
    def make():
        module = as_nnx(ATTENTION, rngs=nnx.Rngs(0))
        state = nnx.state(module)
        nnx.update(module, jax.lax.with_sharding_constraint(state, nnx.get_partition_spec(state)))
        return module

    with jax.set_mesh(mesh), nnx.logical_axis_rules(RULES):
        module = make()
    expected = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    assert module.q.get_value().sharding.is_equivalent_to(expected, 3)


def test_a_table_of_the_module_can_be_printed():
    assert "kv_heads" in nnx.tabulate(filled(ATTENTION), X)


def test_the_documented_script_learns():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = runpy.run_path(str(ROOT / "docs/interop/nnx.py"))
    assert found["losses"][-1] < found["losses"][0] - 0.5
    assert found["adapted"][-1] < 0.9 * found["adapted"][0]
    assert np.concatenate(found["text"], axis=1).shape == (1, 12)
