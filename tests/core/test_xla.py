"""Sums are right on CPU as a user runs them: in a process of its own, with the compiler's default settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxeff.core.errors import UserError
from jaxeff.core.xla import FLAG, NAME, check_flags, keep_sums_right

ROOT = Path(__file__).parents[2]
# Programs on which releases of jaxlib were wrong, crashed, or hung; each is compared with float64 on the host.
CANARY = """
import jaxeff, jax, jax.numpy as jnp, numpy as np
from jaxeff.ops.norm import rms_norm

r = np.random.default_rng(0)
normal = lambda *shape: r.standard_normal(shape).astype(np.float32)
worst = {}

# Gradients of a norm under vmap, against the same gradients one by one.
x, scale = normal(2, 70, 4, 8), np.ones(8, np.float32)
pull = lambda dy: jax.vjp(rms_norm, x, scale)[1](dy)[0]
for n in (9, 10, 12, 16):
    dy = normal(n, 2, 70, 4, 8)
    inverse = 1 / np.sqrt(np.mean(x.astype(np.float64) ** 2, -1, keepdims=True) + 1e-6)
    y = x * inverse
    expected = inverse * (dy - y * np.mean(dy * y, -1, keepdims=True))
    worst[f"norm, {n} cotangents"] = np.abs(jax.jit(jax.vmap(pull))(dy) - expected).max()

# A product with the weight first, inner size 3, many rows, and a sum behind it.
x, w = normal(40_000, 3), normal(3, 3)
found = jax.jit(jax.vmap(lambda row: jnp.sum((w @ row) ** 2)))(x)
worst["weight first"] = np.abs(found - ((x.astype(np.float64) @ w.T) ** 2).sum(1)).max()

# A multiply and reduce of rank 7.
a, b = normal(3, 1, 2, 2, 8, 8, 8), normal(3, 1, 2, 2, 8, 8, 8)
found = jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(a, b)
worst["rank 7"] = np.abs(found - (a.astype(np.float64) * b).sum(3)).max()

for name, error in worst.items():
    print(f"{name}: {error:.1e}")
# Numbers of size one, sums of at most 9 products of them: 1e-4 is a hundred roundings.
assert max(worst.values()) < 1e-4, worst
"""


def python(code: str, **environment) -> subprocess.CompletedProcess:
    plain = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    environment = plain | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


def test_sums_are_right_as_a_user_runs_them():
    done = python(CANARY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr


def test_the_flag_is_added_once_to_those_that_are_there():
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    assert keep_sums_right("0.10.2", environment, started=False) is None
    assert environment["XLA_FLAGS"].split() == ["--xla_force_host_platform_device_count=4", FLAG]
    before = dict(environment)
    assert keep_sums_right("0.10.2", environment, started=False) is None and environment == before


@pytest.mark.parametrize("version", ["0.10.1", "0.12.0", "0.12.0.1", "1.0"])
def test_other_versions_are_left_alone(version):
    environment: dict[str, str] = {}
    assert keep_sums_right(version, environment, started=True) is None and not environment


@pytest.mark.parametrize("value", ["-reduce", "", "dot"])
def test_the_users_own_safe_value_stays(value):
    environment = {"XLA_FLAGS": f"{NAME}={value}"}
    assert keep_sums_right("0.11.0", environment, started=True) is None
    assert environment == {"XLA_FLAGS": f"{NAME}={value}"}


def test_the_users_own_unsafe_value_is_warned_of():
    environment = {"XLA_FLAGS": f"{NAME}=dot,reduce"}
    assert "remove that flag" in keep_sums_right("0.10.2", environment, started=False)


def test_too_late_is_one_warning_that_says_what_to_do():
    done = python("import jax; jax.devices(); import jaxeff, jaxeff.mixers", PYTHONWARNINGS="default")
    assert done.returncode == 0, done.stderr
    from jaxlib.version import __version__ as version

    affected = keep_sums_right(version, {}, started=True) is not None
    assert done.stderr.count("RuntimeWarning") == done.stderr.count("before Python starts") == int(affected)


def test_flags_that_xla_knows_and_does_not_know():
    check_flags("")
    check_flags("/path/of/a/file/of/flags")
    check_flags(f"--xla_force_host_platform_device_count=4 {FLAG} -xla_dump_to='/tmp/a b'")
    with pytest.raises(UserError, match="does not know, --xla_dump_too; did you mean 'xla_dump_to'"):
        check_flags("--xla_cpu_enable_fast_math=true --xla_dump_too=/tmp")
