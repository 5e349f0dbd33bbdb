"""Griffin's recurrent block against its equations in float64, its initial values, and sizes that cannot be. The published numbers
are in tests/golden, the contract in tests/contracts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxeff
from jaxeff.core.precision import POLICIES
from jaxeff.mixers import RGLRU, Ctx, ShortConv
from jaxeff.mixers.rglru import bounded_sqrt
from jaxeff.train.optim import decay_mask
from tests.closeness import assert_close, relative_rms
from tests.compiled import apply_mixer, values

KEY = jax.random.key(0)
SMALL = RGLRU(16, d_rnn=24, n_heads=3)
PLAIN = RGLRU(16, n_heads=1, conv=ShortConv(3, bias=False, activation=None), biases=())


def sigmoid(x):
    return 0.5 * (1 + np.tanh(x / 2))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def by_hand(m, params, x_BTD):
    """The equations at the head of mixers/rglru.py, token by token in float64."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    u, T = np.asarray(x_BTD, np.float64), x_BTD.shape[1]
    y, x = (np.einsum("btd,dhc->bthc", u, p[name]) + p.get(f"{name}_bias", 0) for name in "yx")
    row = np.pad(x, ((0, 0), (m.conv.width - 1, 0), (0, 0), (0, 0)))
    x = p["conv_x"].get("bias", 0) + sum(p["conv_x"]["w"][i] * row[:, i : i + T] for i in range(m.conv.width))
    r, i = (sigmoid(np.einsum("bthc,hce->bthe", x, p[name]) + p[f"{name}_bias"]) for name in "ri")
    log_a = -8 * np.logaddexp(0, p["a_param"]) * r
    h = i * x
    for t in range(1, T):
        h[:, t] = np.exp(log_a[:, t]) * h[:, t - 1] + np.sqrt(-np.expm1(2 * log_a[:, t])) * h[:, t]
    return np.einsum("bthc,hcd->btd", gelu(y) * h, p["o"]) + p.get("o_bias", 0)


@functools.partial(jax.jit, static_argnums=(0, 3))
def gradients(m, params, x_BTD, policy):
    y = lambda p, x: m.apply(p, x, ctx=Ctx(policy=policy)).y.astype(jnp.float32)
    return jax.grad(lambda p, x: jnp.sum(jnp.sin(y(p, x))), argnums=(0, 1))(params, x_BTD)


# Gates: exp(-8 softplus(a_param) r). The biases move r and i, the factor the input.
CASES = {
    "usual": (SMALL, {}, 1.0, 300),
    "plain": (PLAIN, {}, 1.0, 300),
    "long": (SMALL, {}, 1.0, 4096),
    "a near 1": (SMALL, {"a_param": -14.0}, 1.0, 4096),
    "a = 1": (SMALL, {"a_param": -200.0}, 1.0, 300),
    "r = 0": (SMALL, {"r_bias": -60.0}, 1.0, 300),
    "a = 1e-12": (SMALL, {"a_param": 3.4, "r_bias": 40.0}, 1.0, 300),
    "a = 0": (SMALL, {"a_param": 1e4, "r_bias": 4.0}, 1.0, 300),
    "i = 0": (SMALL, {"i_bias": -80.0}, 1.0, 300),
    "inputs 30 times too large": (SMALL, {}, 30.0, 300),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_its_equations_for_any_gate(case, dtype):
    """float32: sums of hundreds of terms, some 1e-6. bfloat16: six roundings of 2^-9 in a row, and the gates' inputs are rounded
    before the sigmoid."""
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


IDS = np.array([[0, 0, 0, 1, 1, 2, 2, 2, 0, 0], [5, 5, 5, 5, 5, 5, 7, 7, 7, 7]], np.int32)


@pytest.mark.parametrize("cut", [0, 2, 3, 5, 9])
def test_the_first_token_of_every_text_is_taken_as_it_is(cut):
    """After padding, after another text, with a state that has seen no token, and nowhere else: each text alone is the same."""
    params, x_BTD = values(SMALL, KEY), np.random.default_rng(0).standard_normal((2, 10, 16)).astype(np.float32)
    state, parts = SMALL.init_state(2, 10, jnp.float32), []
    for part in (slice(0, cut), slice(cut, 10)):
        if part.start < part.stop:
            out = apply_mixer(SMALL, params, x_BTD[:, part], state, Ctx(segment_ids=IDS[:, part]))
            state, parts = out.state, [*parts, out.y]
    y_BTD = np.concatenate(parts, axis=1)
    assert_close(apply_mixer(SMALL, params, x_BTD, None, Ctx(segment_ids=IDS)).y[IDS > 0], y_BTD[IDS > 0])
    for row, text in ((0, 1), (0, 2), (1, 5), (1, 7)):
        at = IDS[row] == text
        assert_close(y_BTD[row][at], by_hand(SMALL, params, x_BTD[row : row + 1, at])[0])


def test_the_square_root_has_no_infinite_slope():
    """As published: 1 / max(2 sqrt(x), 1/1000)."""
    x = jnp.array([0.0, 1e-9, 2.5e-7, 1e-4, 0.25, 1.0])
    slope = jax.vmap(jax.grad(bounded_sqrt))(x)
    np.testing.assert_allclose(slope, [1000.0, 1000.0, 1000.0, 50.0, 1.0, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(bounded_sqrt(x), jnp.sqrt(x))


def test_initial_values():
    m = RGLRU(2048)
    params = jax.jit(lambda: {"a_param": m.specs()["a_param"].init(KEY, (2048,), jnp.float32, None)})()
    square = np.exp(-2 * np.logaddexp(0, np.asarray(params["a_param"], np.float64)))
    low, high = 0.9**2, 0.999**2
    assert square.min() > low - 1e-5 and square.max() < high + 1e-5
    # uniform: mean and variance of 2048 draws, four standard errors wide.
    assert abs(square.mean() - (low + high) / 2) < 4 * (high - low) / 12**0.5 / 2048**0.5
    assert abs(square.std() / (high - low) * 12**0.5 - 1) < 0.05
    params = values(RGLRU(512, d_rnn=256), KEY)
    assert all(not np.any(params[f"{name}_bias"]) for name in ("y", "x", "o", "r", "i"))
    assert abs(np.std(params["r"]) * 32**0.5 - 1) < 0.05 and params["r"].shape == (8, 32, 32)


@pytest.mark.parametrize(
    ("d_rnn", "heads"), [(1, 1), (16, 1), (32, 1), (40, 1), (80, 2), (256, 8), (512, 8), (2560, 40)]
)
def test_blocks_are_32_or_64_wide_where_that_divides(d_rnn, heads):
    m = RGLRU(8, d_rnn=d_rnn)
    assert (m.heads, m.head) == (heads, d_rnn // heads)


def test_gates_are_float32_and_spared_by_weight_decay():
    specs = SMALL.specs()
    params = jaxeff.init(specs, KEY, jnp.bfloat16)
    spared = {name for name, decayed in decay_mask(specs).items() if decayed is False}
    float32 = {"a_param", "r_bias", "i_bias"}
    assert spared == float32 | {"y_bias", "x_bias", "o_bias"}
    assert {name for name, w in params.items() if getattr(w, "dtype", None) == jnp.float32} == float32


def test_the_state_is_as_large_for_any_length():
    state = RGLRU(64, d_rnn=96).init_state(3, 10**6, jnp.bfloat16)
    assert state.h.shape == (3, 96) and state.h.dtype == jnp.float32
    assert state.taps.shape == (3, 3, 3, 32) and state.taps.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RGLRU(24, n_heads=5), "n_heads=5 does not divide d_rnn=24; the nearest that does: 4"),
        (lambda: RGLRU(24, d_rnn=10, n_heads=4), "n_heads=4 does not divide d_rnn=10; the nearest that does: 5"),
        (lambda: RGLRU(24, biases=("z",)), "RGLRU.biases names 'z'"),
        (
            lambda: RGLRU(a_range=(0.9, 1.0)),
            r"a_range must be \(low, high\), rising and between 0 and 1, found \(0.9, 1.0\)",
        ),
        (lambda: RGLRU(a_range=(0.9, 0.8)), r"a_range must be \(low, high\)"),
        (lambda: RGLRU(d_rnn=0), "d_rnn must be at least 1"),
        (lambda: RGLRU(n_heads=0), "n_heads must be at least 1"),
        (lambda: RGLRU().specs(), "has no d_model"),
    ],
)
def test_sizes_that_cannot_be(make, words):
    with pytest.raises(ValueError, match=words):
        make()
