"""RetNet against its equations in float64, its rates, and sizes that cannot be. The published numbers are in tests/golden, the
contract in tests/contracts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxeff
from jaxeff.core.precision import POLICIES
from jaxeff.mixers import Ctx, RetNet
from jaxeff.ops.rope import Rope
from tests.closeness import assert_close, relative_rms
from tests.compiled import apply_mixer, values

KEY = jax.random.key(0)
SMALL = RetNet(16, n_heads=2, key_dim=6, value_dim=8)
MIXERS = {"rope": SMALL, "no rope": RetNet(16, n_heads=3, key_dim=5, rope=None)}


def by_hand(m, params, x_BTD):
    """The equations at the head of mixers/retnet.py, token by token in float64; a pair of channels turns as a complex number."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    x_BTD = np.asarray(x_BTD, np.float64)
    q, k, v, z = (np.einsum("btd,dhc->bthc", x_BTD, p[name]) for name in "qkvz")
    if m.rope is not None:
        R = m.key // 2
        turn = np.exp(1j * np.arange(x_BTD.shape[1])[:, None, None] * 10000.0 ** (-np.arange(R) / R))
        turned = [(x[..., :R] + 1j * x[..., R:]) * turn for x in (q, k)]
        q, k = (np.concatenate([x.real, x.imag], axis=-1) for x in turned)
    a = 1 - 2.0 ** (-5 - np.arange(m.heads))
    S, o = 0.0, np.zeros_like(v)
    for t in range(x_BTD.shape[1]):
        S = a[:, None, None] * S + np.einsum("bhc,bhe->bhce", k[:, t], v[:, t])
        o[:, t] = np.einsum("bhce,bhc->bhe", S, q[:, t]) / np.sqrt(m.key)
    o = o / np.sqrt(np.mean(o**2, axis=-1, keepdims=True) + m.norm.eps) * p["norm"]["scale"]
    return np.einsum("bthe,hed->btd", o * z * 0.5 * (1 + np.tanh(z / 2)), p["o"])


@functools.partial(jax.jit, static_argnums=(0, 3))
def gradients(m, params, x_BTD, policy):
    y = lambda p, x: m.apply(p, x, ctx=Ctx(policy=policy)).y.astype(jnp.float32)
    return jax.grad(lambda p, x: jnp.sum(jnp.sin(y(p, x))), argnums=(0, 1))(params, x_BTD)


CASES = {"usual": (1.0, 300), "long": (1.0, 4096), "inputs 30 times too large": (30.0, 300)}


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_its_equations(mixer, case, dtype):
    """float32: sums of hundreds of terms and a norm, and angles of thousands of radians, rounded to 2^-24 of that, some 1e-6.
    bfloat16: five roundings of 2^-9 in a row."""
    m, (factor, time) = MIXERS[mixer], CASES[case]
    params = values(m, KEY)
    x_BTD = factor * jax.random.normal(jax.random.key(1), (1, time, 16))
    policy = POLICIES[dtype]
    out = apply_mixer(m, params, x_BTD.astype(dtype), None, Ctx(policy=policy))
    error = relative_rms(out.y, by_hand(m, params, x_BTD.astype(dtype)))
    print(f"{mixer} {case} {dtype}: {error:.1e}")
    assert out.y.dtype == jnp.dtype(dtype) and error < (5e-6 if dtype == "float32" else 3e-2)
    for path, g in jaxeff.core.tree.paths(gradients(m, params, x_BTD.astype(dtype), policy)).items():
        assert np.all(np.isfinite(np.asarray(g, np.float32))), path


def test_only_distances_matter():
    """Positions that start elsewhere rotate queries and keys alike."""
    params, x_BTD = values(SMALL, KEY), jax.random.normal(KEY, (1, 40, 16))
    later = apply_mixer(SMALL, params, x_BTD, None, Ctx(positions=100 + jnp.arange(40)[None]))
    assert_close(later.y, apply_mixer(SMALL, params, x_BTD, None, Ctx()).y, 1e-5)


def test_many_heads_still_forget():
    """1 - 2^(-5 - h) is one in float32 from h = 20 on; its logarithm is not zero."""
    log_a_BTH = RetNet(64, n_heads=32)._log_a({}, jnp.zeros((1, 1, 64)))
    np.testing.assert_allclose(log_a_BTH[0, 0, [0, 31]], [np.log(31 / 32), -(2.0**-36)], rtol=1e-6)


def test_sizes_follow_from_the_width():
    """Keys as wide as the model in all, values twice as wide; eight heads where they fit, with keys in pairs."""
    for d, heads, key, value in ((2048, 8, 256, 512), (64, 8, 8, 16), (20, 5, 4, 8), (12, 6, 2, 4)):
        m = RetNet(d)
        assert (m.heads, m.key, m.value) == (heads, key, value)
    assert RetNet(15, rope=None).heads == 5 and RetNet(15, key_dim=4).value == 8


def test_the_state_is_as_large_for_any_length():
    state = RetNet(64).init_state(3, 10**6, jnp.bfloat16)
    assert state.S.shape == (3, 8, 8, 16) and state.S.dtype == jnp.float32


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: RetNet(24, n_heads=8),
            "RetNet.n_heads=8 heads do not share 24 key channels evenly and in pairs: choose 6 or set key_dim",
        ),
        (lambda: RetNet(16, n_heads=3, rope=None), "do not share 16 key channels evenly: choose 2 or set key_dim"),
        (lambda: RetNet(15), "RetNet.n_heads=1 heads do not share 15 .* set key_dim"),
        (lambda: RetNet(16, key_dim=5), "RetNet.key_dim=5 is not rotated in pairs; the nearest that is: 4"),
        (lambda: RetNet(16, key_dim=6, rope=Rope(fraction=0.25)), "key_dim=6 .* the nearest that is: 8"),
        (lambda: RetNet(n_heads=0), "RetNet.n_heads must be at least 1"),
    ],
)
def test_sizes_that_cannot_be(make, words):
    with pytest.raises(ValueError, match=words):
        make()
