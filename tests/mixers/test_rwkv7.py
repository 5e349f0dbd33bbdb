"""RWKV-7 against its equations in float64, its initial values by depth, and sizes that cannot be."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxeff
from jaxeff.core.errors import UserError
from jaxeff.core.precision import POLICIES
from jaxeff.mixers import RWKV7, Ctx
from jaxeff.mixers.base import Shared
from jaxeff.models import LM, Block, Stage, rwkv7_stages
from jaxeff.train.optim import decay_mask
from tests.closeness import relative_rms
from tests.compiled import apply_model, values

KEY = jax.random.key(0)
SMALL = RWKV7(12, head_dim=6, ranks=(3, 4, 5, 6), value_residual=True)


def sigmoid(x):
    return 0.5 * (1 + np.tanh(x / 2))


@functools.cache
def noisy(m):
    """Initial values and something more: o, and what is of low rank, start at zero."""
    r = np.random.default_rng(3)
    return jax.tree.map(
        lambda w: np.asarray(w) + np.float32(0.3) * r.standard_normal(w.shape, np.float32), values(m, KEY)
    )


def by_hand(m, params, x_BTD, v_first):
    """The equations at the head of mixers/rwkv7.py, token by token in float64."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    x_BTD, v_first = np.asarray(x_BTD, np.float64), np.asarray(v_first, np.float64)
    before = np.concatenate([np.zeros_like(x_BTD[:, :1]), x_BTD[:, :-1]], axis=1)
    x = {name: x_BTD + p[f"shift_{name}"] * (before - x_BTD) for name in "rwkvag"}
    r, k, v = (np.einsum("btd,dhc->bthc", x[name], p[name]) for name in "rkv")
    low = lambda name, x, act=lambda a: a: np.einsum("btr,rhc->bthc", act(x @ p[f"{name}_low"]), p[f"{name}_high"])
    a = np.exp(-np.exp(-0.5) * sigmoid(p["decay"] + low("decay", x["w"], np.tanh)))
    rate, gate = sigmoid(p["rate"] + low("rate", x["a"])), low("gate", x["g"], sigmoid)
    removed_rate = rate * (1 + np.exp(-np.exp(-0.5)) if m.negative else 1)
    v = v + (v_first - v) * sigmoid(p["value"] + low("value", x["v"]))
    n = k * p["removal"]
    n = n / np.sqrt(np.sum(n**2, axis=-1, keepdims=True) + 1e-12)
    k = k * (1 + p["replacement"] * (rate - 1))
    S, o = np.zeros((*k[:, 0].shape, m.head)), np.zeros_like(v)
    for t in range(k.shape[1]):
        removed = np.einsum("bhc,bhce->bhe", n[:, t], S)
        S = a[:, t, ..., None] * S - np.einsum("bhc,bhe->bhce", (removed_rate * n)[:, t], removed)
        S = S + np.einsum("bhc,bhe->bhce", k[:, t], v[:, t])
        o[:, t] = np.einsum("bhce,bhc->bhe", S, r[:, t])
    o = o - o.mean(axis=-1, keepdims=True)
    o = o / np.sqrt(np.mean(o**2, axis=-1, keepdims=True) + m.head * 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
    o = o + np.sum(p["bonus"] * r * k, axis=-1, keepdims=True) * v
    return np.einsum("bthc,hcd->btd", o * gate, p["o"])


@functools.partial(jax.jit, static_argnums=0)
def output_and_gradients(m, params, x_BTD, ctx):
    y_BTD, pull = jax.vjp(lambda p, x: m.apply(p, x, ctx=ctx).y, params, x_BTD)
    return y_BTD, pull(jnp.cos(y_BTD))


# Changed biases, the factor of the input, tokens. Decay is at least exp(-exp(-1/2)) = 0.545 a token.
CASES = {
    "usual": ({}, 1.0, 130),
    "long": ({}, 1.0, 4096),
    "a = 1": ({"decay": -60.0}, 1.0, 130),
    "a at its least": ({"decay": 60.0}, 1.0, 130),
    "all that is stored is removed": ({"rate": 60.0, "decay": -60.0}, 1.0, 130),
    "negative": ({}, 1.0, 130),
    "negative, an eigenvalue of -1": ({"rate": 60.0, "decay": 60.0}, 1.0, 130),
    "inputs 30 times too large": ({}, 30.0, 130),
}


@pytest.mark.parametrize("case", CASES)
def test_is_its_equations_for_any_gate(case):
    """float32: sums of some hundred products and a norm, 3e-7 is usual. bfloat16: a dozen roundings of 2^-9, 1 % is usual."""
    changed, factor, time = CASES[case]
    m = dataclasses.replace(SMALL, negative=case.startswith("negative"))
    params = noisy(m) | {name: np.full_like(noisy(m)[name], value) for name, value in changed.items()}
    x_BTD = factor * jax.random.normal(jax.random.key(1), (1, time, 12))
    v_first = factor * jax.random.normal(jax.random.key(2), (1, time, 2, 6))
    for dtype, limit in (("float32", 3e-6), ("bfloat16", 3e-2)):
        x, first = x_BTD.astype(dtype), v_first.astype(dtype)
        ctx = Ctx(policy=POLICIES[dtype], shared=Shared({"v_first": first}))
        y_BTD, gradients = output_and_gradients(m, params, x, ctx)
        error = relative_rms(y_BTD, by_hand(m, params, x, first))
        print(f"{case}, {dtype}: {error:.1e}")
        assert y_BTD.dtype == jnp.dtype(dtype) and error < limit
        for path, g in jaxeff.core.tree.paths(gradients).items():
            assert np.all(np.isfinite(np.asarray(g, np.float32))), path


def test_initial_values_by_depth():
    lm = LM(8, 128, rwkv7_stages(3))
    blocks = values(lm, KEY)["blocks"]
    first, later = blocks["0"]["mixer"], blocks["1"]["mixer"]
    assert "value_low" not in first and "value_low" in later
    fraction = np.arange(128) / 128
    for layer, shift in ((0, first["shift_k"][0]), (2, later["shift_k"][1])):
        np.testing.assert_allclose(shift, 1 - fraction ** (0.7 * (1 - layer / 3)), atol=1e-6)
    z = (np.arange(64) * 2 - 63) / 63
    for layer, decay in ((0, first["decay"][0]), (1, later["decay"][0]), (2, later["decay"][1])):
        line = np.arange(128) / 127
        expected = (-6 + 6 * line ** (1 + (layer / 2) ** 0.3)).reshape(2, 64) + 0.5 + 2.5 * z * abs(z)
        np.testing.assert_allclose(decay, expected, atol=1e-5)
    assert np.allclose(later["norm"]["scale"][1], 1.0) and np.allclose(first["norm"]["scale"], (1 / 3) ** 0.7)
    assert not np.any(first["o"]) and not np.any(first["rate_low"]) and not np.any(blocks["1"]["mlp"]["v"])
    for weight, gain in ((first["r"][0], 1.0), (later["k"][1], 0.1)):
        w = np.asarray(weight).reshape(128, 128)
        np.testing.assert_allclose(w @ w.T, gain**2 * np.eye(128), atol=1e-5)
    alone = values(RWKV7(128), KEY)
    assert all(np.all(np.isfinite(w)) for w in jax.tree.leaves(alone)) and alone["decay"].dtype == jnp.float32
    spared = {name for name, decays in decay_mask(RWKV7(128).specs()).items() if decays is False}
    assert spared >= {"decay", "rate", "removal", "replacement", "bonus", "shift_k"} and "r" not in spared


def test_values_of_the_first_layer_reach_the_others():
    lm = LM(8, 12, rwkv7_stages(3, RWKV7(head_dim=6, ranks=(3, 4, 5, 6))))
    params = noisy(lm)
    tokens = np.arange(14, dtype=np.int32).reshape(2, 7) % 8
    whole = apply_model(lm, params, tokens, None, Ctx())
    assert whole.y.shape == (2, 7, 8)
    other = jax.tree.map(lambda w: w, params)
    other["blocks"]["1"]["mixer"]["value"] = params["blocks"]["1"]["mixer"]["value"] + 3.0
    assert not np.allclose(apply_model(lm, other, tokens, None, Ctx()).y, whole.y)
    with pytest.raises(UserError, match="RWKV7 in stage 0 reads the shared value 'v_first', .* 'rwkv7' would write it"):
        LM(8, 12, (Stage((Block(RWKV7(head_dim=6, value_residual=True)),), 3),))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RWKV7(100, head_dim=64), "head_dim=64 does not divide d_model=100; the nearest that does: 50"),
        (lambda: RWKV7(ranks=(3, 4, 5)), "ranks must be four integers"),
        (lambda: rwkv7_stages(0), "n_layers must be at least 1"),
    ],
)
def test_sizes_that_cannot_be(make, words):
    with pytest.raises(ValueError, match=words):
        make()
