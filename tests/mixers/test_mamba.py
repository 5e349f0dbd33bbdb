"""Mamba against its equations in float64, its initial values, and sizes that cannot be. The published numbers are in
tests/golden, the contract in tests/contracts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxeff
from jaxeff.core.precision import POLICIES
from jaxeff.mixers import Ctx, Mamba
from jaxeff.train.optim import decay_mask
from tests.closeness import relative_rms
from tests.compiled import apply_mixer, values

KEY = jax.random.key(0)
SMALL = Mamba(16, d_state=6, dt_rank=3)
FALCON = Mamba(16, d_state=6, dt_rank=3, bcdt_eps=1e-6)


def silu(x):
    return x * 0.5 * (1 + np.tanh(x / 2))


def by_hand(m, params, x_BTD):
    """The equations at the head of mixers/mamba.py, token by token in float64."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    u = np.asarray(x_BTD, np.float64)
    z, x, T = u @ p["z"], u @ p["x"], u.shape[1]
    row = np.concatenate([np.zeros_like(x[:, : m.conv.width - 1]), x], axis=1)
    x = silu(p["conv_x"]["bias"] + sum(p["conv_x"]["w"][i] * row[:, i : i + T] for i in range(m.conv.width)))

    def low(name):
        y = x @ p[name]
        return y if m.bcdt_eps is None else y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + m.bcdt_eps)

    b, c, dt = low("b"), low("c"), np.logaddexp(0, low("dt_low") @ p["dt"] + p["dt_bias"])
    h, y = 0.0, np.zeros_like(x)
    for t in range(T):
        h = np.exp(-np.exp(p["a_log"]) * dt[:, t, :, None]) * h + (dt * x)[:, t, :, None] * b[:, t, None]
        y[:, t] = np.einsum("bcn,bn->bc", h, c[:, t]) + p["skip"] * x[:, t]
    return (y * silu(z)) @ p["o"]


@functools.partial(jax.jit, static_argnums=(0, 3))
def gradients(m, params, x_BTD, policy):
    y = lambda p, x: m.apply(p, x, ctx=Ctx(policy=policy)).y.astype(jnp.float32)
    return jax.grad(lambda p, x: jnp.sum(jnp.sin(y(p, x))), argnums=(0, 1))(params, x_BTD)


# Gates: exp(-exp(a_log) dt). The bias moves dt, the factor the input.
CASES = {
    "usual": (SMALL, {}, 1.0, 300),
    "falcon": (FALCON, {}, 1.0, 300),
    "long": (SMALL, {}, 1.0, 4096),
    "a = 1": (SMALL, {"a_log": -40.0}, 1.0, 300),
    "a = 1e-12": (SMALL, {"a_log": np.log(27.6), "dt_bias": np.log(np.e - 1)}, 0.1, 300),
    "a = 0": (SMALL, {"a_log": 12.0}, 1.0, 300),
    "dt = 0": (SMALL, {"dt_bias": -80.0}, 1.0, 300),
    "inputs 30 times too large": (SMALL, {}, 30.0, 300),
    "falcon, inputs 30 times too large": (FALCON, {}, 30.0, 300),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_its_equations_for_any_gate(case, dtype):
    """float32: sums of hundreds of terms, some 1e-6. bfloat16: seven roundings of 2^-9 in a row, and the gates' inputs are
    rounded before the exponential."""
    m, changed, factor, time = CASES[case]
    params = values(m, KEY)
    params |= {name: jnp.full_like(params[name], value) for name, value in changed.items()}
    x_BTD = (factor * jax.random.normal(jax.random.key(1), (1, time, 16))).astype(dtype)
    policy = POLICIES[dtype]
    out = apply_mixer(m, params, x_BTD, None, Ctx(policy=policy))
    error = relative_rms(out.y, by_hand(m, params, x_BTD))
    print(f"{case} {dtype}: {error:.1e}")
    assert out.y.dtype == jnp.dtype(dtype) and error < (5e-6 if dtype == "float32" else 3e-2)
    for path, g in jaxeff.core.tree.paths(gradients(m, params, x_BTD, policy)).items():
        assert np.all(np.isfinite(np.asarray(g, np.float32))), path


def test_initial_values():
    m = Mamba(256)
    params = values(m, KEY)
    dt = np.logaddexp(0, params["dt_bias"])
    assert m.inner == 512 and m.rank == 16 and dt.min() > 1e-3 * 0.999 and dt.max() < 0.1
    # log-uniform: the mean of 512 draws, four standard errors wide.
    assert abs(np.mean(np.log(dt)) - np.log(1e-2)) < 4 * np.log(100) / 12**0.5 / 512**0.5
    assert np.allclose(np.exp(params["a_log"]), np.arange(1, 17)) and np.all(params["skip"] == 1)
    low, high = np.quantile(params["dt"], [0.1, 0.9])  # uniform in +-1/4
    assert np.abs(params["dt"]).max() <= 0.25 and abs(low + 0.2) < 0.01 and abs(high - 0.2) < 0.01


@pytest.mark.parametrize(("d_model", "rank"), [(1, 1), (16, 1), (17, 2), (40, 3)])
def test_the_rank_is_a_sixteenth_rounded_up(d_model, rank):
    assert Mamba(d_model).rank == rank


def test_gates_are_float32_and_spared_by_weight_decay():
    specs = SMALL.specs()
    params = jaxeff.init(specs, KEY, jnp.bfloat16)
    spared = {name for name, decayed in decay_mask(specs).items() if decayed is False}
    assert spared == {"a_log", "dt_bias", "skip"}
    assert {name for name, w in params.items() if getattr(w, "dtype", None) == jnp.float32} == spared


def test_the_state_is_as_large_for_any_length():
    state = Mamba(64).init_state(3, 10**6, jnp.bfloat16)
    assert state.h.shape == (3, 128, 16) and state.h.dtype == jnp.float32
    assert state.taps.shape == (3, 3, 128) and state.taps.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mamba(dt_range=(0.2, 0.1)), r"dt_range must be \(low, high\), rising and above 0, found \(0.2, 0.1\)"),
        (lambda: Mamba(dt_range=(0.0, 0.1)), r"dt_range must be \(low, high\)"),
        (lambda: Mamba(bcdt_eps=0.0), "bcdt_eps must be above 0, or None for no norm, found 0.0"),
        (lambda: Mamba(d_state=0), "d_state must be at least 1"),
        (lambda: Mamba(dt_rank=0), "dt_rank must be at least 1"),
        (lambda: Mamba(16, biases=("b",)), "Mamba.biases names 'b'"),
        (lambda: Mamba().specs(), "has no d_model"),
    ],
)
def test_sizes_that_cannot_be(make, words):
    with pytest.raises(ValueError, match=words):
        make()
