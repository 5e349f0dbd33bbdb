import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxeff
from jaxeff.core.spec import Constant, Normal, Spec, fan_in, ones, residual, zeros

SPECS = {
    "a": Spec((64, 32), ("embed", "mlp")),
    "b": {
        "c": Spec((8, 4, 64), ("heads", "head_dim", "embed"), residual, n_in=2),
        "scale": Spec((64,), ("embed",), ones),
    },
}


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b))


def test_values_depend_on_key_and_path_alone():
    key = jax.random.key(0)
    alone = jaxeff.init({"a": SPECS["a"]}, key)
    beside = jaxeff.init(SPECS | {"z": Spec((2,), ("embed",), Normal(1.0))}, key)
    assert equal(alone["a"], beside["a"])
    assert not equal(alone["a"], jaxeff.init({"a": SPECS["a"]}, jax.random.key(1))["a"])


@pytest.mark.shipped
@pytest.mark.parametrize("shape", [dict(), dict(fsdp=2, tensor=2), dict(data=2, tensor=2), dict(tensor=4)])
def test_values_are_bit_equal_on_any_mesh(shape):
    specs, key = jaxeff.stack(SPECS, 3), jax.random.key(7)
    mesh = jaxeff.make_mesh(**shape)
    shardings = jaxeff.shardings(specs, mesh)
    plain = jax.device_get(jaxeff.init(specs, key))
    sharded = jaxeff.init(specs, key, shardings=shardings)
    assert jax.tree.map(lambda x: x.sharding, sharded) == shardings
    assert equal(jax.device_get(sharded), plain)
    traced = jax.jit(lambda key: jaxeff.init(specs, key), out_shardings=shardings)(key)
    assert equal(jax.device_get(traced), plain)


def test_standard_deviations():
    a = jaxeff.init({"w": Spec((400, 300), ("embed", "mlp"), fan_in)}, jax.random.key(0))["w"]
    assert abs(float(a.std()) * 400**0.5 - 1) < 0.01
    o = Spec((10, 40, 300), ("heads", "head_dim", "embed"), residual, n_in=2)
    stacked = jaxeff.init(jaxeff.stack({"o": o}, 2, total=8), jax.random.key(0))["o"]
    assert abs(float(stacked.std()) * (400 * 16) ** 0.5 - 1) < 0.01
    assert not jnp.array_equal(stacked[0], stacked[1])


def by_depth(key, shape, dtype, site):
    return jnp.full(shape, jnp.asarray(site.layer, dtype) / jnp.asarray(site.n_layers, dtype))


def test_layer_depth_reaches_the_initialiser():
    specs = jaxeff.stack({"w": Spec((2,), ("embed",), by_depth)}, 3, start=1, step=2, total=6)
    np.testing.assert_allclose(jaxeff.init(specs, jax.random.key(0))["w"][:, 0], [1 / 6, 3 / 6, 5 / 6], rtol=1e-6)


def test_abstract_has_the_structure_of_init():
    specs = jaxeff.stack(SPECS, 3)
    values = jaxeff.init(specs, jax.random.key(0), jnp.bfloat16)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), values) == jax.tree.map(
        lambda x: (x.shape, x.dtype), jaxeff.abstract(specs, jnp.bfloat16)
    )
    assert jaxeff.count(specs) == jaxeff.count(values) == 3 * (64 * 32 + 8 * 4 * 64 + 64)


def test_specs_are_equal_from_call_to_call_and_hashable():
    assert jaxeff.stack(SPECS, 2) == jaxeff.stack(SPECS, 2)
    assert hash(SPECS["a"]) == hash(Spec((64, 32), ("embed", "mlp")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Spec((2, 3), ("embed",)), "2 dimensions"),
        (lambda: Spec((0,), ("embed",)), "positive"),
        (lambda: Spec((2,), ("embed",), n_in=2), "n_in=2"),
    ],
)
def test_impossible_specs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_constants():
    specs = {"z": Spec((3,), (None,), zeros), "c": Spec((3,), (None,), Constant(0.5))}
    values = jaxeff.init(specs, jax.random.key(0))
    assert values["z"].sum() == 0 and values["c"].tolist() == [0.5] * 3


def by_site(key, shape, dtype, site):
    assert shape == (2,) and site.n_in == 0
    return jnp.full(shape, site.layer + 10 * site.n_layers, dtype)


def test_stacks_nest_and_the_depth_stays_the_layers():
    spec = Spec((2,), ("embed",), by_site, n_in=0)
    specs = jaxeff.stack(jaxeff.stack({"w": spec}, 3, axis="expert"), 2, start=1, step=2, total=4)
    assert specs["w"].axes == ("layer", "expert", "embed") and specs["w"].n_stacked == 2
    values = jaxeff.init(specs, jax.random.key(0))["w"]
    assert values.shape == (2, 3, 2)
    np.testing.assert_array_equal(values[:, :, 0], [[41] * 3, [43] * 3])
    drawn = jaxeff.init(
        jaxeff.stack(jaxeff.stack({"w": Spec((4, 2), ("embed", "mlp"))}, 3, axis="expert"), 2), jax.random.key(0)
    )
    assert len({x.tobytes() for x in np.asarray(drawn["w"]).reshape(6, -1)}) == 6, "every expert draws its own"


def test_outside_a_stack_a_weight_is_layer_0_of_1():
    assert float(jaxeff.init({"w": Spec((2,), ("embed",), by_site, n_in=0)}, jax.random.key(0))["w"][0]) == 10
