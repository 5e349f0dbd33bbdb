"""The marker `shipped` decides how a test's programs are compiled."""

import time

import jax
import jax.numpy as jnp
import pytest

from tests.shipped import compile_as


def machine_code(**options) -> int:
    """Size of a small program that has no ready-made kernel, which an optimised compilation unrolls, vectorises and prunes. It is
    another one each time, since one that the cache of programs hands out tells less of itself."""
    now = float(time.time_ns() % 10**9)
    f = jax.jit(lambda x: jnp.atan2(x, x + now), compiler_options=options)
    compiled = f.lower(jax.ShapeDtypeStruct((64, 64), jnp.float32)).compile()
    return len(compiled.runtime_executable().serialize())


def is_optimised() -> bool:
    """Whether a program compiled now is more like one of the highest level than like one of the lowest."""
    plain, high, low = machine_code(), *(machine_code(xla_backend_optimization_level=level) for level in (3, 0))
    assert abs(high - low) > 500, "the two levels cannot be told apart"
    return abs(plain - high) < abs(plain - low)


def test_programs_are_compiled_quickly():
    assert not is_optimised()


@pytest.mark.shipped
def test_shipped_programs_are_optimised():
    assert is_optimised()


def test_no_program_outlives_a_change():
    traced = []
    f = jax.jit(lambda x: traced.append(x) or x)
    for n, shipped in enumerate([False, True, True, False]):
        compile_as(shipped)
        f(1.0)
        assert len(traced) == [1, 2, 2, 3][n]


def test_shipped_tests_come_last(request):
    shipped = [item.get_closest_marker("shipped") is not None for item in request.session.items]
    assert shipped == sorted(shipped)
