"""RWKV-6 against its equations in float64, its initial values, and sizes that cannot be. The published numbers are in
tests/golden, the contract in tests/contracts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxeff
from jaxeff.core.precision import POLICIES
from jaxeff.core.spec import at_depth, stack
from jaxeff.mixers import Ctx
from jaxeff.mixers.rwkv6 import RWKV6, RWKV6Channel
from jaxeff.train.optim import decay_mask
from tests.closeness import relative_rms
from tests.compiled import apply_mixer, values

KEY = jax.random.key(0)
TIME, CHANNEL = RWKV6(16, n_heads=2, mix_rank=5, decay_rank=6), RWKV6Channel(16, d_hidden=40)
MIXES = {f"mix_{name}" for name in "xrwkvg"}


@functools.cache
def noisy(m):
    """Initial values and something more: what is of low rank starts at zero."""
    r = np.random.default_rng(3)
    return jax.tree.map(
        lambda w: np.asarray(w) + np.float32(0.2) * r.standard_normal(w.shape, np.float32), values(m, KEY)
    )


def sigmoid(x):
    return 0.5 * (1 + np.tanh(x / 2))


def by_hand(m, params, x_BTD):
    """The equations at the head of mixers/rwkv6.py, token by token in float64."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    x_BTD = np.asarray(x_BTD, np.float64)
    before_BTD = np.concatenate([np.zeros_like(x_BTD[:, :1]), x_BTD[:, :-1]], axis=1)
    lerp = lambda mix: x_BTD + (before_BTD - x_BTD) * mix
    if isinstance(m, RWKV6Channel):
        k, r = lerp(p["mix_k"]) @ p["k"], lerp(p["mix_r"]) @ p["r"]
        return sigmoid(r) * (np.maximum(k, 0) ** 2 @ p["v"])
    low = np.tanh(np.einsum("btd,dnr->btnr", lerp(p["mix_x"]), p["mix_down"]))
    more = np.moveaxis(np.einsum("btnr,nrd->btnd", low, p["mix_up"]), 2, 0)
    x = {name: lerp(p[f"mix_{name}"] + more[n]) for n, name in enumerate("rwkvg")}
    r, k, v, g = (np.einsum("btd,dhc->bthc", x[name], p[name]) for name in "rkvg")
    decay = p["decay"] + np.einsum("btr,rhc->bthc", np.tanh(x["w"] @ p["decay_down"]), p["decay_up"])
    a, S, o = np.exp(-np.exp(decay)), np.zeros((*k[:, 0].shape, m.head)), np.zeros_like(v)
    for t in range(k.shape[1]):
        added = k[:, t, ..., None] * v[:, t, :, None]
        o[:, t] = np.einsum("bhce,bhc->bhe", S + p["bonus"][..., None] * added, r[:, t])
        S = a[:, t, ..., None] * S + added
    o = o - o.mean(axis=-1, keepdims=True)
    o = o / np.sqrt(np.mean(o**2, axis=-1, keepdims=True) + 64e-5) * p["norm"]["scale"] + p["norm"]["bias"]
    return np.einsum("bthc,hcd->btd", o * g * sigmoid(g), p["o"])


@functools.partial(jax.jit, static_argnums=(0, 3))
def gradients(m, params, x_BTD, policy):
    y = lambda p, x: m.apply(p, x, ctx=Ctx(policy=policy)).y.astype(jnp.float32)
    return jax.grad(lambda p, x: jnp.sum(jnp.sin(y(p, x))), argnums=(0, 1))(params, x_BTD)


# What fades: exp(-exp(decay)). The factor is the input's.
CASES = {
    "usual": (TIME, {}, 1.0, 130),
    "long": (TIME, {}, 1.0, 4096),
    "a = 1": (TIME, {"decay": -40.0}, 1.0, 130),
    "a = 1, long": (TIME, {"decay": -40.0}, 1.0, 4096),
    "a = 1e-12": (TIME, {"decay": np.log(27.6)}, 1.0, 130),
    "a = 0": (TIME, {"decay": 12.0}, 1.0, 130),
    "an infinite exp(decay)": (TIME, {"decay": 200.0}, 1.0, 130),
    "no bonus": (TIME, {"bonus": 0.0}, 1.0, 130),
    "inputs 30 times too large": (TIME, {}, 30.0, 130),
    "channel": (CHANNEL, {}, 1.0, 130),
    "channel, inputs 30 times too large": (CHANNEL, {}, 30.0, 130),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_its_equations_for_any_decay(case, dtype):
    """float32: sums of some hundred products and a norm, 3e-7 is usual. bfloat16: some ten roundings of 2^-9, 1 % is usual."""
    mixer, changed, factor, time = CASES[case]
    params = noisy(mixer) | {name: np.full_like(noisy(mixer)[name], value) for name, value in changed.items()}
    x_BTD = factor * jax.random.normal(jax.random.key(1), (1, time, 16))
    policy = POLICIES[dtype]
    out = apply_mixer(mixer, params, x_BTD.astype(dtype), None, Ctx(policy=policy))
    error = relative_rms(out.y, by_hand(mixer, params, x_BTD.astype(dtype)))
    print(f"{case} {dtype}: {error:.1e}")
    assert out.y.dtype == jnp.dtype(dtype) and error < (2e-6 if dtype == "float32" else 3e-2)
    for path, g in jaxeff.core.tree.paths(gradients(mixer, params, x_BTD.astype(dtype), policy)).items():
        assert np.all(np.isfinite(np.asarray(g, np.float32))), path


@pytest.mark.parametrize(("layer", "layers"), [(0, 1), (0, 3), (1, 3), (2, 3)])
def test_initial_values_by_depth(layer, layers):
    """The published formulas, in a stack (where the layer is traced), by itself at that depth and, as layer 0 of 1, alone."""
    depth, rest = layer / max(layers - 1, 1), 1 - layer / layers
    channel, line = np.arange(16) / 16, np.arange(16) / 15
    zigzag = np.array([0, 1, -1] * 5 + [0])
    expected = {f"mix_{name}": 1 - channel**rest for name in "xwk"}
    expected |= {f"mix_{name}": 1 - channel ** (0.5 * rest) for name in "rg"}
    expected |= {
        "mix_v": 1 - (channel**rest + 0.3 * depth),
        "decay": (-6 + 5 * line ** (0.7 + 1.3 * depth)).reshape(2, 8),
        "bonus": (depth * (1 - line) + 0.1 * zigzag).reshape(2, 8),
        "mix_down": np.zeros((16, 5, 5)),
        "decay_down": np.zeros((16, 6)),
    }
    stacked = jaxeff.init(stack(TIME.specs(), layers), KEY)
    alone = jaxeff.init(at_depth(TIME.specs(), layer, layers), KEY)
    for name, value in expected.items():
        np.testing.assert_allclose(stacked[name][layer], value, rtol=2e-6, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(alone[name], value, rtol=2e-6, atol=1e-6, err_msg=name)
    below = jaxeff.init(stack(CHANNEL.specs(), layers), KEY)
    for name in ("mix_k", "mix_r"):
        np.testing.assert_allclose(below[name][layer], 1 - channel**rest, rtol=2e-6, atol=1e-6, err_msg=name)
    if layers == 1:
        assert all(np.array_equal(values(TIME, KEY)[name], alone[name]) for name in expected)


def test_the_outer_halves_of_low_rank_start_small_and_each_its_own():
    for w in (values(TIME, KEY)["mix_up"], values(TIME, KEY)["decay_up"]):
        assert 0.008 < np.max(np.abs(w)) < 0.01
    assert not np.array_equal(*values(TIME, KEY)["mix_up"][:2])


def test_a_single_channel_has_initial_values():
    assert all(np.all(np.isfinite(w)) for w in jax.tree.leaves((values(RWKV6(1), KEY), values(RWKV6Channel(1), KEY))))


def test_decay_bonus_and_mixes_are_spared_by_weight_decay():
    params = jaxeff.init(TIME.specs(), KEY, jnp.bfloat16)
    spared = lambda mixer: {name for name, decayed in decay_mask(mixer.specs()).items() if decayed is False}
    assert spared(TIME) == {"decay", "bonus"} | MIXES and spared(CHANNEL) == {"mix_k", "mix_r"}
    assert {name for name, w in params.items() if name != "norm" and w.dtype == jnp.float32} == {"decay", "bonus"}


def test_the_state_is_as_large_for_any_length():
    state = TIME.init_state(3, 10**6, jnp.bfloat16)
    assert (state.shift.x.shape, state.shift.x.dtype) == ((3, 16), jnp.bfloat16)
    assert (state.S.shape, state.S.dtype) == ((3, 2, 8, 8), jnp.float32)
    assert CHANNEL.init_state(3, 10**6, jnp.bfloat16).x.shape == (3, 16)


def test_the_state_keeps_its_types():
    for mixer in (TIME, CHANNEL):
        state = mixer.init_state(1, 8, jnp.bfloat16)
        x_BTD = jax.random.normal(KEY, (1, 3, 16))
        after = apply_mixer(mixer, values(mixer, KEY), x_BTD, state, Ctx()).state
        assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)


def test_sizes_are_given_or_derived():
    heads = lambda *args: (RWKV6(*args).heads, RWKV6(*args).head)
    assert heads(512) == (8, 64) and heads(96) == (2, 48) and heads(32) == (1, 32) and heads(131) == (1, 131)
    assert heads(96, 3) == (3, 32) and heads(96, None, 16) == (6, 16) and heads(100, 3, 16) == (3, 16)
    hidden = {2048: 7168, 100: 320, 24: 64, 9: 31, 1: 3}
    assert {d: RWKV6Channel(d).hidden for d in hidden} == hidden and RWKV6Channel(24, 20).hidden == 20


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RWKV6(0), "RWKV6.d_model must be at least 1"),
        (lambda: RWKV6(16, decay_rank=0), "RWKV6.decay_rank must be at least 1"),
        (lambda: RWKV6(20, n_heads=3), "RWKV6.n_heads=3 does not divide d_model=20; the nearest that does: 4"),
        (lambda: RWKV6(20, head_dim=64), "RWKV6.head_dim=64 does not divide d_model=20; the nearest that does: 20"),
        (lambda: RWKV6Channel(16, d_hidden=-1), "RWKV6Channel.d_hidden must be at least 1"),
        (lambda: RWKV6().specs(), "d_model"),
    ],
)
def test_sizes_that_cannot_be(make, words):
    with pytest.raises(ValueError, match=words):
        make()
