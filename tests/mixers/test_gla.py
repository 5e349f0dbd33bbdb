"""GLA against its equations in float64, its gates, and sizes that cannot be. The published numbers are in tests/golden, the
contract in tests/contracts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxeff
from jaxeff.core.precision import POLICIES
from jaxeff.mixers import GLA, Ctx
from jaxeff.ops.rope import Rope
from tests.closeness import relative_rms
from tests.compiled import apply_mixer, values

KEY = jax.random.key(0)
SMALL = GLA(16, n_heads=2, key_dim=6, value_dim=8, rank=5)


def by_hand(m, params, x_BTD):
    """The equations at the head of mixers/gla.py, token by token in float64."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    x_BTD = np.asarray(x_BTD, np.float64)
    q, k, v, z = (np.einsum("btd,dhc->bthc", x_BTD, p[name]) for name in "qkvz")
    logit = np.einsum("btd,dr,rhc->bthc", x_BTD, p["a_low"], p["a"]) + p["a_bias"]
    a = np.exp(-np.logaddexp(0, -logit) / m.temperature)
    S, o = 0.0, np.zeros_like(v)
    for t in range(x_BTD.shape[1]):
        S = a[:, t, :, :, None] * S + np.einsum("bhc,bhe->bhce", k[:, t], v[:, t])
        o[:, t] = np.einsum("bhce,bhc->bhe", S, q[:, t]) / np.sqrt(m.key)
    o = o / np.sqrt(np.mean(o**2, axis=-1, keepdims=True) + m.norm.eps) * p["norm"]["scale"]
    return np.einsum("bthe,hed->btd", o * z * 0.5 * (1 + np.tanh(z / 2)), p["o"])


@functools.partial(jax.jit, static_argnums=(0, 3))
def gradients(m, params, x_BTD, policy):
    y = lambda p, x: m.apply(p, x, ctx=Ctx(policy=policy)).y.astype(jnp.float32)
    return jax.grad(lambda p, x: jnp.sum(jnp.sin(y(p, x))), argnums=(0, 1))(params, x_BTD)


# Gates: sigmoid(. + a_bias)^(1/16). The bias moves them, the factor the input.
CASES = {
    "usual": ({}, 1.0, 300),
    "long": ({}, 1.0, 4096),
    "a = 1": ({"a_bias": 200.0}, 1.0, 300),
    "a = 1e-12": ({"a_bias": 16 * np.log(1e-12)}, 1.0, 300),
    "a = 0": ({"a_bias": -1e5}, 1.0, 300),
    "inputs 30 times too large": ({}, 30.0, 300),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_its_equations_for_any_gate(case, dtype):
    """float32: sums of hundreds of terms and a norm, some 1e-6. bfloat16: six roundings of 2^-9 in a row, and the gates' inputs
    are rounded before the exponential."""
    changed, factor, time = CASES[case]
    params = values(SMALL, KEY)
    params |= {name: jnp.full_like(params[name], value) for name, value in changed.items()}
    x_BTD = factor * jax.random.normal(jax.random.key(1), (1, time, 16))
    policy = POLICIES[dtype]
    out = apply_mixer(SMALL, params, x_BTD.astype(dtype), None, Ctx(policy=policy))
    error = relative_rms(out.y, by_hand(SMALL, params, x_BTD.astype(dtype)))
    print(f"{case} {dtype}: {error:.1e}")
    assert out.y.dtype == jnp.dtype(dtype) and error < (5e-6 if dtype == "float32" else 3e-2)
    for path, g in jaxeff.core.tree.paths(gradients(SMALL, params, x_BTD.astype(dtype), policy)).items():
        assert np.all(np.isfinite(np.asarray(g, np.float32))), path


def test_sizes_follow_from_the_width():
    """Keys half as wide as the model in all, values as wide; four heads where they fit."""
    for d, heads, key, value in ((1024, 4, 128, 256), (64, 4, 8, 16), (12, 3, 2, 4), (10, 1, 5, 10)):
        m = GLA(d)
        assert (m.heads, m.key, m.value) == (heads, key, value)
    assert GLA(15, n_heads=2, key_dim=3).value == 6


def test_a_first_gate_is_near_one():
    """sigmoid(0)^(1/16) = 0.96: half of the state is left after 16 tokens."""
    log_a_BTHC = GLA(16)._log_a(values(GLA(16), KEY), jnp.zeros((1, 1, 16)))
    np.testing.assert_allclose(log_a_BTHC, np.full((1, 1, 4, 2), -np.log(2) / 16), rtol=1e-6)


def test_the_state_is_as_large_for_any_length():
    state = GLA(64).init_state(3, 10**6, jnp.bfloat16)
    assert state.S.shape == (3, 4, 8, 16) and state.S.dtype == jnp.float32


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: GLA(24, n_heads=5),
            "GLA.n_heads=5 heads do not share 12 key channels evenly: choose 4 or set key_dim",
        ),
        (lambda: GLA(15), "GLA.n_heads=1 heads do not share .* set key_dim"),
        (lambda: GLA(16, key_dim=3, rope=Rope()), "GLA.key_dim=3 is not rotated in pairs; the nearest that is: 2"),
        (lambda: GLA(rank=0), "GLA.rank must be at least 1"),
        (lambda: GLA(value_dim=0), "GLA.value_dim must be at least 1"),
        (lambda: GLA(temperature=0.0), "GLA.temperature must be above 0, found 0.0"),
    ],
)
def test_sizes_that_cannot_be(make, words):
    with pytest.raises(ValueError, match=words):
        make()
