"""Modules of Flax Linen: what their users do with a module, done to every mixer, a block and a model. B batch, T time, D model."""

import runpy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from jax.sharding import NamedSharding, PartitionSpec

import jaxeff
from jaxeff.core.sharding import RULES
from jaxeff.core.tree import paths
from jaxeff.interop.linen import as_linen
from jaxeff.mixers.base import Ctx
from jaxeff.models import Block
from jaxeff.transforms import LoRA, PromptTuning
from tests.closeness import assert_close
from tests.documented import ROOT
from tests.interop.parts import (
    ATTENTION,
    BLOCK,
    MODEL,
    NAMES,
    RECURRENCE,
    TOKENS,
    D,
    T,
    X,
    assert_agrees,
    bare,
    input_of,
    numbers,
    part_of,
    values,
)
from tests.models.toy_mixers import FirstValue, Ones, Shift, Told

KEY = jax.random.key(0)


def filled(part):
    """Variables with `values(part)`."""
    return {"params": jax.tree.map(jnp.asarray, values(part))}


@pytest.mark.parametrize("name", [*NAMES, "block", "lm"])
def test_outputs_and_gradients_are_those_of_the_bare_form(name):
    part = part_of(name)
    apply = lambda params, x: as_linen(part).apply({"params": params}, x)
    assert_agrees(apply, part, 1e-6)


@pytest.mark.parametrize("name", [*NAMES, "block", "lm"])
def test_parameters_have_the_names_shapes_and_axes_of_the_specs(name):
    part = part_of(name)
    variables = jax.eval_shape(as_linen(part).init, KEY, input_of(part))
    assert list(variables) == ["params"]
    expected = paths(part.specs())
    assert {path: leaf.shape for path, leaf in paths(nn.unbox(variables["params"])).items()} == {
        path: spec.shape for path, spec in expected.items()
    }
    found = paths(nn.get_partition_spec(variables)["params"], is_leaf=lambda x: isinstance(x, PartitionSpec))
    assert found == {path: PartitionSpec(*spec.axes) for path, spec in expected.items()}


@pytest.mark.parametrize("part", [ATTENTION, BLOCK, MODEL], ids=lambda part: type(part).__name__)
def test_token_after_token_is_the_whole(part):
    module, x, variables = as_linen(part), input_of(part), filled(part)
    whole = jax.jit(module.apply)(variables, x)
    prefill = jax.jit(lambda v, x: module.apply(v, x, decode=True, max_len=T, mutable=["cache"]))
    step = jax.jit(lambda v, x: module.apply(v, x, decode=True, mutable=["cache"]))
    y, cache = prefill(variables, x[:, :2])
    outputs = [np.asarray(y)]
    for t in range(2, T):
        y, cache = step(variables | cache, x[:, t : t + 1])
        outputs.append(np.asarray(y))
    assert_close(np.concatenate(outputs, axis=1), whole, 1e-5)


def test_a_cache_is_there_after_init_and_survives_bytes():
    module = as_linen(RECURRENCE)
    empty = jax.jit(lambda x: module.init(KEY, x, decode=True, max_len=T)["cache"])(X)
    variables = filled(RECURRENCE) | {"cache": empty}
    assert not np.any(variables["cache"]["S"])
    _, cache = jax.jit(lambda v, x: module.apply(v, x, decode=True, mutable=["cache"]))(variables, X)
    again = serialization.from_bytes(variables, serialization.to_bytes(variables | cache))
    assert np.any(again["cache"]["S"])
    assert_close(again, variables | cache, 0)


def test_decoding_without_a_cache_says_what_is_missing():
    with pytest.raises(ValueError, match="give max_len"):
        as_linen(ATTENTION).apply(filled(ATTENTION), X, decode=True, mutable=["cache"])


@pytest.mark.parametrize("part", [BLOCK, MODEL], ids=lambda part: type(part).__name__)
def test_parameters_survive_bytes_boxed_or_not(part):
    boxed = numbers(jax.eval_shape(as_linen(part).init, KEY, input_of(part)))
    for variables in (boxed, nn.unbox(boxed)):
        zeros = jax.tree.map(np.zeros_like, variables)
        assert_close(serialization.from_bytes(zeros, serialization.to_bytes(variables)), variables, 0)


def test_shared_values_come_in_and_go_out_and_aux_is_sown():
    first, shift, told = FirstValue(D), Shift(D), Told(D)
    variables = [nn.unbox(as_linen(part).init(KEY, X, Ctx(shared={"v_first": X}))) for part in (first, shift, told)]
    out = as_linen(first).apply(variables[0], X, method="out")
    assert list(out.shared) == ["v_first"] and out.state is None
    ctx = Ctx().sharing(out.shared)
    expected = shift.apply(variables[1]["params"], X, ctx=ctx).y
    assert_close(as_linen(shift).apply(variables[1], X, ctx), expected, 1e-6)
    y, sown = as_linen(told).apply({"params": variables[2]["params"]}, X, mutable=["intermediates"])
    assert sown["intermediates"]["load"][0].shape == (2,)
    assert_close(sown["intermediates"]["loss"][0], 0.1 * jnp.mean(y**2), 1e-6)


def test_the_dropout_stream_turns_dropout_on():
    module = as_linen(Block(Ones(), mlp=None, dropout=0.5).bind(D))
    variables = module.init(KEY, X)
    with_key = lambda seed: module.apply(variables, X, rngs={"dropout": jax.random.key(seed)}) - X
    assert_close(module.apply(variables, X) - X, np.ones_like(X), 1e-6)
    assert set(np.round(np.unique(with_key(1)))) == {0, 2}
    assert np.any(with_key(1) != with_key(2)) and np.all(with_key(1) == with_key(1))


class DecoderLayer(nn.Module):
    """A layer as MaxText writes it: annotated activations, a norm, a mixer, a dense pair."""

    decode: bool = False

    @nn.compact
    def __call__(self, x_BTD, _):
        x_BTD = nn.with_logical_constraint(x_BTD, ("batch", "time", "embed"))
        h_BTD = as_linen(Block(RECURRENCE, mlp=None), name="mixer")(
            nn.LayerNorm(name="norm")(x_BTD), decode=self.decode, max_len=T
        )
        kernel = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        return x_BTD + nn.Dense(D, kernel_init=kernel, name="dense")(h_BTD), None


class Decoder(nn.Module):
    """Three such layers, scanned and recomputed."""

    decode: bool = False

    @nn.compact
    def __call__(self, x_BTD):
        layers = nn.scan(
            nn.remat(DecoderLayer, prevent_cse=False),
            variable_axes={"params": 0, "cache": 0},
            split_rngs={"params": True},
            length=3,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return layers(self.decode, name="layers")(x_BTD, None)[0]


def test_scanned_and_recomputed_inside_a_sharded_decoder():
    rules = (*RULES, ("layers", None))
    mesh = jaxeff.make_mesh(fsdp=2, tensor=2)
    with jax.numpy_rank_promotion("allow"), jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        abstract = jax.eval_shape(Decoder().init, KEY, X)
        logical = nn.get_partition_spec(abstract)
        layers = logical["params"]["layers"]
        assert layers["mixer"]["mixer"]["q"] == PartitionSpec("layers", "embed", "heads", "head_dim")
        assert layers["dense"]["kernel"] == PartitionSpec("layers", "embed", "mlp")
        shardings = nn.logical_to_mesh_sharding(logical, mesh, rules)
        variables = nn.unbox(jax.jit(Decoder().init, out_shardings=shardings)(KEY, X))
        q = variables["params"]["layers"]["mixer"]["mixer"]["q"]
        assert q.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor")), 4)
        assert not np.allclose(q[0], q[1])
        loss = lambda v: jnp.sum(jnp.sin(Decoder().apply(v, X)))
        gradients = jax.jit(jax.grad(loss))(variables)
    alone = jax.device_get(variables)
    with jax.numpy_rank_promotion("allow"):
        assert_close(gradients, jax.jit(jax.grad(loss))(alone), 1e-5)


def test_a_scanned_decoder_decodes():
    with jax.numpy_rank_promotion("allow"):
        variables = numbers(nn.unbox(jax.eval_shape(Decoder().init, KEY, X)))
        whole = jax.jit(Decoder().apply)(variables, X)
        empty = jax.jit(lambda x: Decoder(decode=True).init(KEY, x)["cache"])(X)
        step = jax.jit(lambda v, x: Decoder(decode=True).apply(v, x, mutable=["cache"]))
        variables, outputs = variables | {"cache": empty}, []
        for t in range(T):
            y, cache = step(variables, X[:, t : t + 1])
            variables, outputs = variables | cache, [*outputs, np.asarray(y)]
    assert_close(np.concatenate(outputs, axis=1), whole, 1e-5)


def test_weights_may_be_nodes_of_a_transform():
    plan = LoRA(("q|v",), rank=2).plan(ATTENTION.specs())
    params = filled(ATTENTION)["params"]
    adapted = plan.lift(params, KEY)
    both = jax.jit(
        lambda adapted, params: (as_linen(ATTENTION).apply({"params": adapted}, X), bare(ATTENTION)(params, X))
    )
    assert_close(*both(adapted, params), 1e-6)


def test_decoding_begins_with_what_was_learned():
    params = PromptTuning(length=3).plan(MODEL.specs()).lift(values(MODEL), KEY)
    whole = jax.jit(lambda params, x: MODEL.apply(params, x).y)(params, TOKENS)
    prefill = jax.jit(lambda v, x: as_linen(MODEL).apply(v, x, decode=True, max_len=T, mutable=["cache"]))
    assert_close(prefill({"params": params}, TOKENS)[0], whole, 1e-5)


def test_the_documented_script_learns():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = runpy.run_path(str(ROOT / "docs/interop/linen.py"))
    assert found["losses"][-1] < found["losses"][0] - 0.5
    assert found["adapted"][-1] < 0.9 * found["adapted"][0]
    assert np.concatenate(found["text"], axis=1).shape == (1, 12)
