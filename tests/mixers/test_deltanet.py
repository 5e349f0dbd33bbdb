"""DeltaNet and its gated successors against their equations in float64, their initial values, and sizes that cannot be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxeff
from jaxeff.core.precision import POLICIES
from jaxeff.mixers import KDA, Ctx, DeltaNet, GatedDeltaNet, GatedDeltaProduct
from jaxeff.train.optim import decay_mask
from tests.closeness import relative_rms
from tests.compiled import values

KEY = jax.random.key(0)
SIZES = dict(d_model=16, n_heads=2, n_key_heads=1, head_dim=6, value_dim=5)
MIXERS = {
    "deltanet": DeltaNet(**SIZES, negative=True, gate=True),
    "gated_deltanet": GatedDeltaNet(**SIZES),
    "kda": KDA(**SIZES),
    "gated_deltaproduct": GatedDeltaProduct(**SIZES),
}


def sigmoid(x):
    return 0.5 * (1 + np.tanh(x / 2))


def by_hand(m, params, x_BTD):
    """The equations at the heads of mixers/deltanet.py and its successors, step by step in float64."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    x_BTD, n, (B, T, _) = np.asarray(x_BTD, np.float64), m.steps, x_BTD.shape

    def conv(name):
        u, w = np.einsum("btd,dhc->bthc", x_BTD, p[name]), p[f"conv_{name}"]["w"]
        row = np.concatenate([np.zeros_like(u[:, : len(w) - 1]), u], axis=1)
        y = sum(w[i] * row[:, i : i + T] for i in range(len(w)))
        return y * sigmoid(y)

    unit = lambda a: a / np.sqrt(np.sum(a**2, axis=-1, keepdims=True) + 1e-6)
    q = np.repeat(unit(conv("q")), m.heads // m.key_heads, axis=2) * m.head**-0.5
    k = np.repeat(unit(conv("k")), m.heads // m.key_heads, axis=2).reshape(B, T, n, m.heads, m.head)
    v = conv("v").reshape(B, T, n, m.heads, m.value)
    beta = sigmoid(np.einsum("btd,dh->bth", x_BTD, p["beta"])).reshape(B, T, n, m.heads) * (2 if m.negative else 1)
    if isinstance(m, KDA):
        dt = np.einsum("btd,dr,rhc->bthc", x_BTD, p["dt_low"], p["dt"])
        log_a = -np.exp(p["a_log"])[:, None] * np.logaddexp(0, dt + p["dt_bias"])
        z = sigmoid(np.einsum("btd,dr,rhe->bthe", x_BTD, p["z_low"], p["z"]) + p["z_bias"])
    else:
        z = np.einsum("btd,dhe->bthe", x_BTD, p["z"])
        z = z * sigmoid(z)
        log_a = np.zeros((B, T, m.heads, 1))
        if isinstance(m, GatedDeltaNet):
            dt = np.logaddexp(0, np.einsum("btd,dh->bth", x_BTD, p["dt"]) + p["dt_bias"])
            log_a = (-np.exp(p["a_log"]) * dt)[..., None]
    S, o = np.zeros((B, m.heads, m.head, m.value)), np.zeros((B, T, m.heads, m.value))
    for t in range(T):
        S = np.exp(log_a[:, t])[..., None] * S
        for j in range(n):
            wrong = v[:, t, j] - np.einsum("bhc,bhce->bhe", k[:, t, j], S)
            S = S + np.einsum("bh,bhc,bhe->bhce", beta[:, t, j], k[:, t, j], wrong)
        o[:, t] = np.einsum("bhce,bhc->bhe", S, q[:, t])
    o = o / np.sqrt(np.mean(o**2, axis=-1, keepdims=True) + m.norm.eps) * p["norm"]["scale"] * z
    return np.einsum("bthe,hed->btd", o, p["o"])


@functools.partial(jax.jit, static_argnums=(0, 3))
def output_and_gradients(m, params, x_BTD, policy):
    y_BTD, pull = jax.vjp(lambda p, x: m.apply(p, x, ctx=Ctx(policy=policy)).y, params, x_BTD)
    return y_BTD, pull(jnp.cos(y_BTD))


# Changed parameters, the factor of the input, tokens. Gates: exp(-exp(a_log) dt), dt = softplus(dt_bias + ...).
CASES = {
    "usual": ({}, 1.0, 130),
    "long": ({}, 1.0, 4096),
    "a = 1": ({"a_log": -40.0}, 1.0, 130),
    "a = 1e-12": ({"a_log": np.log(27.6), "dt_bias": np.log(np.e - 1)}, 0.1, 130),
    "a = 0": ({"a_log": 12.0}, 1.0, 130),
    "inputs 30 times too large": ({}, 30.0, 130),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MIXERS)
def test_is_its_equations_for_any_gate(name, case):
    """float32: sums of some hundred products and a norm, 5e-7 is usual. bfloat16: ten roundings of 2^-9, 1 % is usual; 4 % where
    inputs 30 times too large saturate beta at 2, so that nothing damps an error."""
    m = MIXERS[name]
    changed, factor, time = CASES[case]
    params = values(m, KEY)
    params |= {key: jnp.full_like(params[key], value) for key, value in changed.items() if key in params}
    x_BTD = factor * jax.random.normal(jax.random.key(1), (1, time, 16))
    for dtype, limit in (("float32", 5e-6), ("bfloat16", 6e-2)):
        x, policy = x_BTD.astype(dtype), POLICIES[dtype]
        y_BTD, gradients = output_and_gradients(m, params, x, policy)
        error = relative_rms(y_BTD, by_hand(m, params, x))
        print(f"{name}, {case}, {dtype}: {error:.1e}")
        assert y_BTD.dtype == jnp.dtype(dtype) and error < limit
        for path, g in jaxeff.core.tree.paths(gradients).items():
            assert np.all(np.isfinite(np.asarray(g, np.float32))), path


def test_derived_sizes():
    sizes = lambda m: (m.heads, m.head, m.value, m.key_heads)
    assert sizes(DeltaNet(256)) == (8, 32, 32, 8) and sizes(KDA(512)) == (8, 64, 64, 8)
    assert sizes(GatedDeltaNet(256)) == (8, 32, 64, 8)
    state = GatedDeltaNet(64, n_key_heads=1).init_state(3, 10**6, jnp.bfloat16)
    assert state.S.shape == (3, 2, 32, 64) and state.S.dtype == jnp.float32
    assert {name: taps.shape for name, taps in state.taps.items()} == {
        "q": (3, 3, 1, 32), "k": (3, 3, 1, 32), "v": (3, 3, 2, 64),
    }  # fmt: skip


@pytest.mark.parametrize("make", [GatedDeltaNet, KDA, GatedDeltaProduct])
def test_gates_start_as_published_and_are_spared_by_weight_decay(make):
    m = make(512, head_dim=4)
    params, spared = values(m, KEY), decay_mask(m.specs())
    dt, a = np.logaddexp(0, params["dt_bias"]), np.exp(params["a_log"])
    assert dt.min() > 1e-3 * 0.999 and dt.max() < 0.1 and a.min() >= m.a_range[0] * 0.999 and a.max() <= 16
    assert abs(np.mean(np.log(dt)) - np.log(1e-2)) < 0.5 and abs(np.mean(a) - 8.3) < 2
    assert not spared["dt_bias"] and not spared["a_log"] and spared["dt"] and spared["q"]
    assert jaxeff.init(m.specs(), KEY, jnp.bfloat16)["a_log"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DeltaNet(20, n_heads=3), "DeltaNet.n_heads=3 does not divide d_model=20"),
        (lambda: KDA(24, n_heads=6, n_key_heads=4), "KDA.n_key_heads=4 does not divide n_heads=6"),
        (lambda: GatedDeltaNet(a_range=(0.0, 1.0)), r"GatedDeltaNet.a_range must be \(low, high\)"),
        (lambda: GatedDeltaProduct(steps=0), "GatedDeltaProduct.steps must be at least 1"),
        (lambda: DeltaNet(value_dim=0), "DeltaNet.value_dim must be at least 1"),
    ],
)
def test_sizes_that_cannot_be(make, words):
    with pytest.raises(ValueError, match=words):
        make()
