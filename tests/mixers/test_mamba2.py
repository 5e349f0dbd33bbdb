"""Mamba-2 against its equations in float64, its initial values, and sizes that cannot be. The published numbers are in
tests/golden, the contract in tests/contracts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxeff
from jaxeff.core.precision import POLICIES
from jaxeff.core.target import lowering_for
from jaxeff.mixers import Ctx, LayerNorm, Mamba2, ShortConv
from jaxeff.train.optim import decay_mask
from tests.closeness import assert_close, relative_rms
from tests.compiled import apply_mixer, values

KEY = jax.random.key(0)
SMALL = Mamba2(16, d_state=6, head_dim=8, n_groups=2)


def silu(x):
    return x * 0.5 * (1 + np.tanh(x / 2))


def by_hand(m, params, x_BTD):
    """The equations at the head of mixers/mamba2.py, token by token in float64."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    x_BTD = np.asarray(x_BTD, np.float64)

    def conv(name):
        u, w = np.einsum("btd,dgn->btgn", x_BTD, p[name]), p[f"conv_{name}"]
        row = np.concatenate([np.zeros_like(u[:, : m.conv.width - 1]), u], axis=1)
        return silu(w["bias"] + sum(w["w"][i] * row[:, i : i + u.shape[1]] for i in range(m.conv.width)))

    z, x, b, c = np.einsum("btd,dhe->bthe", x_BTD, p["z"]), conv("x"), conv("b"), conv("c")
    b, c = (np.repeat(a, m.heads // m.n_groups, axis=2) for a in (b, c))
    dt = np.logaddexp(0, np.einsum("btd,dh->bth", x_BTD, p["dt"]) + p["dt_bias"])
    dt = dt if m.dt_limit is None else np.clip(dt, *m.dt_limit)
    S, y = 0.0, np.zeros_like(x)
    for t in range(x.shape[1]):
        S = np.exp(-np.exp(p["a_log"]) * dt[:, t])[..., None, None] * S
        S = S + np.einsum("bhn,bhe->bhne", b[:, t], dt[:, t, :, None] * x[:, t])
        y[:, t] = np.einsum("bhne,bhn->bhe", S, c[:, t]) + p["skip"][:, None] * x[:, t]
    h = (y * silu(z)).reshape(*y.shape[:2], m.n_groups, -1)
    h = (h / np.sqrt(np.mean(h**2, axis=-1, keepdims=True) + m.norm.eps)).reshape(y.shape) * p["norm"]["scale"]
    return np.einsum("bthe,hed->btd", h, p["o"])


@functools.partial(jax.jit, static_argnums=(0, 3))
def gradients(m, params, x_BTD, policy):
    y = lambda p, x: m.apply(p, x, ctx=Ctx(policy=policy)).y.astype(jnp.float32)
    return jax.grad(lambda p, x: jnp.sum(jnp.sin(y(p, x))), argnums=(0, 1))(params, x_BTD)


# Gates: exp(-exp(a_log) dt). The bias moves dt, the factor the input.
CASES = {
    "usual": ({}, 1.0, 300),
    "long": ({}, 1.0, 4096),
    "a = 1": ({"a_log": -40.0}, 1.0, 300),
    "a = 1e-12": ({"a_log": np.log(27.6), "dt_bias": np.log(np.e - 1)}, 0.1, 300),
    "a = 0": ({"a_log": 12.0}, 1.0, 300),
    "dt = 0": ({"dt_bias": -80.0}, 1.0, 300),
    "inputs 30 times too large": ({}, 30.0, 300),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_its_equations_for_any_gate(case, dtype):
    """float32: sums of hundreds of terms and a norm, some 1e-6. bfloat16: seven roundings of 2^-9 in a row, and the gates' inputs
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


@pytest.mark.parametrize("changed", [{}, {"norm_before_gate": True}, {"norm": LayerNorm()}])
def test_the_gate_as_tpus_lay_it_out(changed):
    """The same numbers and gradients: sums in another order."""
    m = Mamba2(16, d_state=6, head_dim=8, **changed)
    y_BTHE, z_BTHE, weights = jax.random.normal(jax.random.key(1), (3, 2, 13, m.heads, m.head))
    params = jax.tree.map(lambda w: w + jax.random.normal(jax.random.key(2), w.shape), values(m, KEY)["norm"])

    def found(target):
        with lowering_for(target):
            f = lambda *arrays: jnp.sum(m._gate(*arrays) * weights)  # noqa: E731
            return m._gate(params, y_BTHE, z_BTHE), jax.grad(f, (0, 1, 2))(params, y_BTHE, z_BTHE)

    assert_close(found("tpu"), found("cpu"), 1e-6)


def test_initial_values():
    m = Mamba2(512, head_dim=4)
    params = values(m, KEY)
    dt, a = np.logaddexp(0, params["dt_bias"]), np.exp(params["a_log"])
    assert m.heads == 256 and dt.min() > 1e-3 * 0.999 and dt.max() < 0.1 and a.min() >= 1 and a.max() <= 16
    # log-uniform and uniform: means of 256 draws, four standard errors wide.
    assert abs(np.mean(np.log(dt)) - np.log(1e-2)) < 4 * np.log(100) / 12**0.5 / 16
    assert abs(np.mean(a) - 8.5) < 4 * 15 / 12**0.5 / 16
    assert np.all(params["skip"] == 1) and np.abs(params["conv_x"]["w"]).max() <= 0.5
    low, high = np.quantile(params["conv_x"]["w"], [0.1, 0.9])
    assert abs(low + 0.4) < 0.03 and abs(high - 0.4) < 0.03


def test_gates_are_float32_and_spared_by_weight_decay():
    specs = SMALL.specs()
    params = jaxeff.init(specs, KEY, jnp.bfloat16)
    spared = {name for name, decayed in decay_mask(specs).items() if decayed is False}
    assert spared == {"a_log", "dt_bias", "skip"} and not decay_mask(specs)["norm"]["scale"]
    assert {name for name, w in params.items() if getattr(w, "dtype", None) == jnp.float32} == spared


def test_the_state_is_as_large_for_any_length():
    state = Mamba2(64).init_state(3, 10**6, jnp.bfloat16)
    assert state.S.shape == (3, 2, 128, 64) and state.S.dtype == jnp.float32
    assert {name: (t.shape, t.dtype) for name, t in state.taps.items()} == {
        "x": ((3, 3, 2, 64), jnp.bfloat16), "b": ((3, 3, 1, 128), jnp.bfloat16), "c": ((3, 3, 1, 128), jnp.bfloat16),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: Mamba2(20, head_dim=64),
            "head_dim=64 does not divide expand . d_model = 40; the nearest that does: 40",
        ),
        (lambda: Mamba2(24, head_dim=8, n_groups=4), "n_groups=4 does not divide 6 heads; the nearest that does: 3"),
        (
            lambda: Mamba2(24, head_dim=8, norm_groups=5),
            "norm_groups=5 does not divide 6 heads; the nearest that does: 6",
        ),
        (lambda: Mamba2(dt_limit=(0.2, 0.1)), r"dt_limit must be \(low, high\)"),
        (lambda: Mamba2(a_range=(0.0, 0.1)), r"a_range must be \(low, high\)"),
        (lambda: Mamba2(d_state=0), "d_state must be at least 1"),
        (lambda: ShortConv(activation="sillu"), "did you mean"),
    ],
)
def test_sizes_that_cannot_be(make, words):
    with pytest.raises((ValueError, jaxeff.core.errors.UserError), match=words):
        make()
