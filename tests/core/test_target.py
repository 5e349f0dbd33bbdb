"""Implementations are chosen for the platform that a program is for, and for its mesh. T time, D model."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

import jaxeff
from jaxeff.core.sharding import MESH_AXES, make_mesh
from jaxeff.core.target import BESIDE, SCOPED, WINDOWS, compiler_options, lowering_for, platform, tpu_options
from jaxeff.mixers import GQA
from jaxeff.mixers.base import Ctx
from jaxeff.ops.attention import attention

T, D = 256, 64
KERNEL = "tpu_custom_call"
ONE, MANY, HEADS = (
    AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    for sizes in ((1, 1, 1, 1), (4, 1, 1, 1), (1, 2, 2, 1))
)


def lowered(platform, mesh=None, length=T):
    """The text of a GQA's gradient, lowered for a platform."""
    layer = GQA(D, n_heads=2)
    x_BTD = jax.ShapeDtypeStruct((4, length, D), jnp.float32)
    loss = lambda params, x_BTD: jnp.sum(layer.apply(params, x_BTD, ctx=Ctx(mesh=mesh)).y)
    with lowering_for(platform):
        traced = jax.jit(jax.grad(loss)).trace(jaxeff.abstract(layer.specs()), x_BTD)
        return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("mesh", [None, ONE, MANY, HEADS], ids=["no mesh", "mesh of one", "rows", "heads"])
def test_a_tpu_gets_its_kernel(mesh):
    assert KERNEL in lowered("tpu", mesh)


@pytest.mark.parametrize("case", [("cpu", None, T), ("tpu", None, T + 1)], ids=str)
def test_where_the_kernel_cannot_serve(case):
    assert KERNEL not in lowered(*case)


def test_a_kernel_serves_inside_shard_map():
    x_BTHC = jax.ShapeDtypeStruct((4, T, 1, 32), jnp.float32)
    f = jax.jit(lambda x: attention(x, x, x, impl="splash", mesh=MANY))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.P("data")
    inside = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False))
    with lowering_for("tpu"):
        assert KERNEL in inside.trace(x_BTHC).lower(lowering_platforms=("tpu",)).as_text()


def test_a_program_is_traced_anew_for_another_platform():
    seen = []
    f = jax.jit(lambda x: seen.append(platform()) or x)
    f(1.0)
    for name in ("tpu", "cpu"):
        with lowering_for(name):
            f.trace(1.0)
            f.trace(1.0)
    f(1.0)
    assert seen == ["cpu", "tpu", "cpu"]


def test_the_target_ends_with_its_block():
    with pytest.raises(ZeroDivisionError), lowering_for("gpu"):
        assert platform() == "gpu"
        with lowering_for("tpu"):
            assert platform() == "tpu"
        assert platform() == "gpu"
        raise ZeroDivisionError
    assert platform() == jax.default_backend() == "cpu"


def test_unknown_platform():
    with pytest.raises(ValueError, match="no platform is called 'cuda'"), lowering_for("cuda"):
        pass


def test_options_of_the_compiler_are_a_kind_of_tpus():
    """Sums beside other work are refused by the compiler for other kinds than v5e."""
    assert compiler_options(make_mesh()) is None
    assert set(tpu_options("TPU v5p")) == set(tpu_options("TPU v6 lite")) == {WINDOWS, SCOPED}
    assert set(tpu_options("TPU v5 lite")) == {WINDOWS, SCOPED, *BESIDE}
