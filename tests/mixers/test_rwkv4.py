"""RWKV-4 against its equations in float64, its initial values, and sizes that cannot be. The published numbers are in
tests/golden, the contract in tests/contracts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxeff
from jaxeff.core.precision import POLICIES
from jaxeff.core.spec import at_depth, stack
from jaxeff.mixers import RWKV4, Ctx, RWKV4Channel
from jaxeff.train.optim import decay_mask
from tests.closeness import relative_rms
from tests.compiled import apply_mixer, values

KEY = jax.random.key(0)
TIME, CHANNEL = RWKV4(16, d_attention=24), RWKV4Channel(16, d_hidden=40)
MIXES = {"mix_k", "mix_v", "mix_r"}


def sigmoid(x):
    return 0.5 * (1 + np.tanh(x / 2))


def by_hand(m, params, x_BTD):
    """The equations at the head of mixers/rwkv4.py, token by token in float64; num and den are logarithms with a sign."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    x_BTD = np.asarray(x_BTD, np.float64)
    before_BTD = np.concatenate([np.zeros_like(x_BTD[:, :1]), x_BTD[:, :-1]], axis=1)
    mixed = lambda name: (x_BTD * p[f"mix_{name}"] + before_BTD * (1 - p[f"mix_{name}"])) @ p[name]
    if isinstance(m, RWKV4Channel):
        return sigmoid(mixed("r")) * (np.maximum(mixed("k"), 0) ** 2 @ p["v"])
    k, v, r = mixed("k"), mixed("v"), mixed("r")
    w, y = np.exp(p["decay"]), np.zeros_like(v)
    log_den, mean = np.full(v[:, 0].shape, -np.inf), np.zeros_like(v[:, 0])  # of the past: weight and average

    def joined(log_a, a, log_b, b):
        log_sum = np.logaddexp(log_a, log_b)
        return log_sum, np.exp(log_a - log_sum) * a + np.exp(log_b - log_sum) * b

    for t in range(v.shape[1]):
        y[:, t] = joined(log_den, mean, p["bonus"] + k[:, t], v[:, t])[1]
        log_den, mean = joined(log_den - w, mean, k[:, t], v[:, t])
    return (sigmoid(r) * y) @ p["o"]


@functools.partial(jax.jit, static_argnums=(0, 3))
def gradients(m, params, x_BTD, policy):
    y = lambda p, x: m.apply(p, x, ctx=Ctx(policy=policy)).y.astype(jnp.float32)
    return jax.grad(lambda p, x: jnp.sum(jnp.sin(y(p, x))), argnums=(0, 1))(params, x_BTD)


# What fades: exp(-exp(decay)). The factor is the input's.
CASES = {
    "usual": (TIME, {}, 1.0, 300),
    "long": (TIME, {}, 1.0, 4096),
    "a = 1": (TIME, {"decay": -40.0}, 1.0, 300),
    "a = 1e-12": (TIME, {"decay": np.log(27.6)}, 1.0, 300),
    "a = 0": (TIME, {"decay": 12.0}, 1.0, 300),
    "no bonus": (TIME, {"bonus": -80.0}, 1.0, 300),
    "inputs 30 times too large": (TIME, {}, 30.0, 300),
    "channel": (CHANNEL, {}, 1.0, 300),
    "channel, inputs 30 times too large": (CHANNEL, {}, 30.0, 300),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_its_equations_for_any_decay(case, dtype):
    """float32: averages of thousands of values, some 1e-6; exponents near 100 are rounded to 4e-6 and decay token by token, as
    in the published code. bfloat16: five roundings of 2^-9 in a row, that of k before the exponential."""
    mixer, changed, factor, time = CASES[case]
    params = values(mixer, KEY)
    params |= {name: jnp.full_like(params[name], value) for name, value in changed.items()}
    x_BTD = factor * jax.random.normal(jax.random.key(1), (1, time, 16))
    policy = POLICIES[dtype]
    out = apply_mixer(mixer, params, x_BTD.astype(dtype), None, Ctx(policy=policy))
    error = relative_rms(out.y, by_hand(mixer, params, x_BTD.astype(dtype)))
    print(f"{case} {dtype}: {error:.1e}")
    limit = 5e-6 if factor == 1 else 3e-5
    assert out.y.dtype == jnp.dtype(dtype) and error < (limit if dtype == "float32" else 3e-2)
    for path, g in jaxeff.core.tree.paths(gradients(mixer, params, x_BTD.astype(dtype), policy)).items():
        assert np.all(np.isfinite(np.asarray(g, np.float32))), path


@pytest.mark.parametrize(("layer", "layers"), [(0, 1), (0, 3), (1, 3), (2, 3)])
def test_initial_values_by_depth(layer, layers):
    """The published formulas, in a stack (where the layer is traced), by itself at that depth and, as layer 0 of 1, alone."""
    depth, rest = layer / max(layers - 1, 1), 1 - layer / layers
    channel, i = np.arange(16) / 16, np.arange(24)
    expected = {
        "mix_k": channel**rest, "mix_v": channel**rest + 0.3 * depth, "mix_r": channel ** (0.5 * rest),
        "decay": -5 + 8 * (i / 23) ** (0.7 + 1.3 * depth), "bonus": np.log(0.3) + 0.5 * np.array([0, 1, -1] * 8),
    }  # fmt: skip
    stacked = jaxeff.init(stack(TIME.specs(), layers), KEY)
    alone = jaxeff.init(at_depth(TIME.specs(), layer, layers), KEY)
    for name, value in expected.items():
        np.testing.assert_allclose(stacked[name][layer], value, rtol=2e-6, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(alone[name], value, rtol=2e-6, atol=1e-6, err_msg=name)
    below = jaxeff.init(stack(CHANNEL.specs(), layers), KEY)
    for name in ("mix_k", "mix_r"):
        np.testing.assert_allclose(below[name][layer], channel**rest, rtol=2e-6, atol=1e-6, err_msg=name)
    if layers == 1:
        assert all(np.array_equal(values(TIME, KEY)[name], alone[name]) for name in expected)


def test_a_single_channel_has_initial_values():
    assert all(np.all(np.isfinite(w)) for w in jax.tree.leaves((values(RWKV4(1), KEY), values(RWKV4Channel(1), KEY))))


def test_decay_bonus_and_mixes_are_spared_by_weight_decay():
    params = jaxeff.init(TIME.specs(), KEY, jnp.bfloat16)
    spared = lambda mixer: {name for name, decayed in decay_mask(mixer.specs()).items() if not decayed}
    assert spared(TIME) == {"decay", "bonus"} | MIXES and spared(CHANNEL) == {"mix_k", "mix_r"}
    assert {name for name, w in params.items() if w.dtype == jnp.float32} == {"decay", "bonus"}


def test_the_state_is_as_large_for_any_length():
    state = TIME.init_state(3, 10**6, jnp.bfloat16)
    assert (state.shift.x.shape, state.shift.x.dtype) == ((3, 16), jnp.bfloat16)
    assert all((x.shape, x.dtype) == ((3, 24), jnp.float32) for x in state.wkv)
    assert CHANNEL.init_state(3, 10**6, jnp.bfloat16).x.shape == (3, 16)


def test_the_state_keeps_its_types():
    for mixer in (TIME, CHANNEL):
        state = mixer.init_state(1, 8, jnp.bfloat16)
        x_BTD = jax.random.normal(KEY, (1, 3, 16))
        after = apply_mixer(mixer, values(mixer, KEY), x_BTD, state, Ctx()).state
        assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)


def test_sizes_are_given_or_derived():
    assert (RWKV4(24).attention, RWKV4(24, 20).attention) == (24, 20)
    assert (RWKV4Channel(24).hidden, RWKV4Channel(24, 20).hidden) == (96, 20)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RWKV4(0), "RWKV4.d_model must be at least 1"),
        (lambda: RWKV4(16, d_attention=0), "RWKV4.d_attention must be at least 1"),
        (lambda: RWKV4Channel(16, d_hidden=-1), "RWKV4Channel.d_hidden must be at least 1"),
        (lambda: RWKV4().specs(), "d_model"),
    ],
)
def test_sizes_that_cannot_be(make, words):
    with pytest.raises(ValueError, match=words):
        make()
