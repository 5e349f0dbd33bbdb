"""The Mosaic kernel of the selective scan, interpreted here, against the equations token by token in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxeff.core.sharding import make_mesh
from jaxeff.core.target import lowering_for
from jaxeff.ops.pallas import selective_scan as kernel
from jaxeff.ops.selective_scan import selective_scan
from tests.closeness import assert_close

# Sums of up to some hundred products in float32, of those over channels and time in another order: 3e-7 (printed).
RMS = 2e-6
B, D = 2, 256


def arrays(T=200, N=16, seed=0):
    """The arrays of `selective_scan` by name: dt in [0, 0.5], a in [-4, 0]."""
    r = np.random.default_rng(seed)
    shapes = dict(x_BTD=(B, T, D), b_BTN=(B, T, N), c_BTN=(B, T, N), state_BDN=(B, D, N))
    made = {name: r.standard_normal(shape) for name, shape in shapes.items()}
    made |= dict(dt_BTD=0.5 * r.uniform(size=(B, T, D)), a_DN=-4 * r.uniform(size=(D, N)))
    return {name: jnp.asarray(x, jnp.float32) for name, x in made.items()}


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    """Programs for a TPU that this machine can run; several blocks of channels in small arrays."""
    monkeypatch.setattr(kernel, "by_kernel", functools.partial(kernel.by_kernel, interpret=True))
    monkeypatch.setattr(kernel, "CHANNELS", 128)


def resets(T, *places):
    """[B, T], True there and, in the second row, at token 5."""
    return jnp.zeros((B, T), bool).at[:, list(places)].set(True).at[1, 5].set(True)


def equations(a, reset_BT, weights):
    """((y, state), gradients of both weighted) in float64, by the equations at the head of `ops.selective_scan`."""
    a, weights = ({name: np.asarray(x, np.float64) for name, x in given.items()} for given in (a, weights))
    x, dt, A, b, c = (a[name] for name in ("x_BTD", "dt_BTD", "a_DN", "b_BTN", "c_BTN"))
    kept = 1.0 if reset_BT is None else 1.0 - np.asarray(reset_BT, np.float64)[:, :, None, None]
    g, h, T = np.exp(dt[..., None] * A) * kept, [a["state_BDN"]], x.shape[1]
    for t in range(T):
        h.append(g[:, t] * h[-1] + (dt * x)[:, t, :, None] * b[:, t, None])
    dy, m = weights["x_BTD"], weights["state_BDN"]
    d = {name: np.zeros_like(value) for name, value in a.items()}
    for t in reversed(range(T)):
        l_BDN = c[:, t, None] * dy[:, t, :, None] + m
        m = g[:, t] * l_BDN
        dlog_BDN, du_BD = m * h[t], np.sum(l_BDN * b[:, t, None], axis=2)
        d["x_BTD"][:, t] = du_BD * dt[:, t]
        d["dt_BTD"][:, t] = du_BD * x[:, t] + np.sum(dlog_BDN * A, axis=2)
        d["a_DN"] += np.sum(dlog_BDN * dt[:, t, :, None], axis=0)
        d["b_BTN"][:, t] = np.sum(l_BDN * (dt * x)[:, t, :, None], axis=1)
        d["c_BTN"][:, t] = np.sum(h[t + 1] * dy[:, t, :, None], axis=1)
    y = np.stack([np.einsum("bdn,bn->bd", h[t + 1], c[:, t]) for t in range(T)], axis=1)
    return (y, h[-1]), d | dict(state_BDN=m)


def compare(a, reset_BT=None, form=selective_scan, **spread):
    weights = arrays(a["x_BTD"].shape[1], a["a_DN"].shape[1], seed=1)

    def scalar(a):
        y_BTD, state_BDN = form(**a, reset_BT=reset_BT, **spread)
        return jnp.sum(y_BTD * weights["x_BTD"]) + jnp.sum(state_BDN * weights["state_BDN"]), (y_BTD, state_BDN)

    with lowering_for("tpu"):
        run = jax.value_and_grad(scalar, has_aux=True)
        assert "pallas_call" in str(jax.make_jaxpr(run)(a))
        (_, values), gradients = jax.jit(run)(a)
    assert_close((values, gradients), equations(a, reset_BT, weights), RMS)


@pytest.mark.parametrize(("T", "N"), [(128, 16), (200, 8), (391, 16)])
def test_at_every_length(T, N):
    compare(arrays(T, N))


def test_with_resets():
    """At the start, at both sides of the ends of a register and of a chunk, and at the last token."""
    compare(arrays(), resets(200, 0, 7, 8, 127, 128, 150, 199))


@pytest.mark.parametrize("times", [0.0, 1e-3, 1e30])
def test_for_every_gate(times):
    """Rates of 0, where a reset has to forget what no gate does, and those that leave nothing."""
    a = arrays()
    compare(a | dict(a_DN=times * a["a_DN"]), resets(200, 100))


def test_padding_leaves_the_state_as_it_was():
    a = arrays(128)
    with lowering_for("tpu"):
        _, state_BDN = jax.jit(selective_scan)(**a | dict(dt_BTD=jnp.zeros_like(a["dt_BTD"])))
    assert jnp.array_equal(state_BDN, a["state_BDN"])


@pytest.mark.parametrize("reset", [False, True])
def test_on_each_device(reset):
    """Rows and channels cut over devices."""
    compare(arrays(), resets(200, 9, 103) if reset else None, mesh=make_mesh(data=2, tensor=2))


def test_within_slices_of_the_text():
    """The state of a slice is that after the one before it."""
    mesh, whole, text = make_mesh(sequence=2, tensor=2), PartitionSpec(), PartitionSpec(None, "sequence")
    names = ("x_BTD", "dt_BTD", "a_DN", "b_BTN", "c_BTN", "state_BDN")

    def sliced(reset_BT, **a):
        specs = dict(in_specs=(text, text, whole, text, text, whole, text), out_specs=(text, whole))
        run = functools.partial(selective_scan, mesh=mesh)
        run = jax.shard_map(run, mesh=mesh, **specs, axis_names={"sequence"}, check_vma=False)
        return run(*(a[name] for name in names), reset_BT)

    compare(arrays(256), resets(256, 9, 130), form=sliced)


def test_says_what_it_cannot_serve():
    a = arrays(128)
    x_BTD, a_DN = a["x_BTD"], a["a_DN"]
    assert kernel.why_not(x_BTD, a_DN) is None
    assert kernel.why_not(x_BTD, a_DN, make_mesh(tensor=2)) is None
    assert "128 tokens" in kernel.why_not(x_BTD[:, :127], a_DN)
    assert "multiple of 128, found 64" in kernel.why_not(x_BTD, a_DN, make_mesh(tensor=4))
    assert "multiple of 8, at most 128, found 4" in kernel.why_not(x_BTD, a_DN[:, :4])
    with lowering_for("tpu"):
        assert "pallas_call" not in str(jax.make_jaxpr(selective_scan)(**arrays(128, 4)))
