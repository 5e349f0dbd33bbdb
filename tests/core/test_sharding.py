import logging

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import jaxeff
from jaxeff.core.errors import UserError
from jaxeff.core.sharding import RULES, constrain, pspec
from jaxeff.core.spec import Spec


def test_axes_follow_the_rules():
    mesh = jaxeff.make_mesh(fsdp=2, tensor=2)
    assert pspec(("embed", "heads", "head_dim"), (8, 4, 3), mesh) == P("fsdp", "tensor", None)
    assert pspec((None, "mlp"), (3, 8), mesh) == P(None, "tensor")


def test_axes_of_size_one_leave_the_spec_empty():
    assert pspec(("embed", "heads"), (8, 4), jaxeff.make_mesh()) == P(None, None)


def test_unknown_axis_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'embed'"):
        pspec(("embedd",), (8,), jaxeff.make_mesh())


def test_two_dimensions_on_one_mesh_axis_are_refused():
    with pytest.raises(UserError, match="'heads' and 'mlp'.*'tensor'"):
        pspec(("heads", "mlp"), (4, 4), jaxeff.make_mesh(tensor=2))


def test_indivisible_dimension_is_replicated_and_logged_once(caplog):
    mesh = jaxeff.make_mesh(tensor=4)
    with caplog.at_level(logging.INFO, logger="jaxeff"):
        for _ in range(3):
            assert pspec(("kv_heads",), (7,), mesh) == P(None)
    assert len([r for r in caplog.records if "replicated" in r.message]) == 1


def test_mesh_larger_than_the_devices():
    with pytest.raises(UserError, match="data=3 x tensor=2 needs 6 devices; there are 4"):
        jaxeff.make_mesh(data=3, tensor=2)
    with pytest.raises(UserError, match="at least 1"):
        jaxeff.make_mesh(data=0)
    with pytest.raises(UserError, match="mesh.dcn_data=2 must be at least 1 and divide mesh.data=1"):
        jaxeff.make_mesh(fsdp=2, dcn_data=2)
    with pytest.raises(UserError, match="the number of slices, and the devices are in 1"):
        jaxeff.make_mesh(data=2, dcn_data=2)


def test_shardings_of_specs():
    specs = {"w": Spec((8, 4), ("embed", "mlp"))}
    mesh = jaxeff.make_mesh(fsdp=2, tensor=2)
    w = jax.device_put(jnp.ones((8, 4)), jaxeff.shardings(specs, mesh)["w"])
    assert w.addressable_shards[0].data.shape == (4, 2)


def test_constrain_is_the_identity_without_a_mesh():
    x = jnp.ones((2, 3))
    assert constrain(x, ("batch", None)) is x


def test_every_rule_names_a_mesh_axis():
    assert {target for _, targets in RULES for target in targets} <= set(jaxeff.make_mesh().axis_names)


def test_experts_take_their_mesh_axis_once():
    mesh = jaxeff.make_mesh(tensor=2, fsdp=2)
    specs = jaxeff.stack(jaxeff.stack({"up": Spec((8, 6), ("embed", "mlp"))}, 4, axis="expert"), 3)
    assert specs["up"].n_stacked == 2
    assert jaxeff.shardings(specs, mesh)["up"].spec == P(None, "tensor", "fsdp", None)
    few = jaxeff.stack({"up": Spec((8, 6), ("embed", "mlp"))}, 3, axis="expert")
    assert jaxeff.shardings(few, mesh)["up"].spec == P(None, "fsdp", "tensor"), (
        "three experts leave the axis to the width"
    )


def test_other_rules():
    rules = RULES.replace(mlp=("data",))
    assert pspec(("embed", "mlp"), (8, 8), jaxeff.make_mesh(data=2, fsdp=2), rules) == P("fsdp", "data")
    assert hash(rules) == hash(RULES.replace(mlp=("data",))) and rules != RULES
    with pytest.raises(UserError, match="did you mean 'mlp'"):
        RULES.replace(mpl=())
