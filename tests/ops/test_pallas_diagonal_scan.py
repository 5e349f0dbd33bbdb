"""The Mosaic kernel of the diagonal recurrence, interpreted here, against the equations token by token in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxeff.core.sharding import make_mesh
from jaxeff.core.target import lowering_for
from jaxeff.ops.diagonal_scan import diagonal_scan
from jaxeff.ops.pallas import diagonal_scan as kernel
from tests.closeness import assert_close

# Both have the same products; the kernel adds some ten of them in another order, in float32: 1e-7 (printed).
RMS = 1e-6
B, D = 2, 256


def arrays(T=200, seed=0):
    """log_a in [-1, 0], x and a state."""
    r = np.random.default_rng(seed)
    made = dict(
        log_a_BTD=-r.uniform(size=(B, T, D)), x_BTD=r.standard_normal((B, T, D)), state_BD=r.standard_normal((B, D))
    )
    return {name: jnp.asarray(x, jnp.float32) for name, x in made.items()}


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    """Programs for a TPU that this machine can run; several blocks of time and of channels in small arrays."""
    monkeypatch.setattr(kernel, "by_kernel", functools.partial(kernel.by_kernel, interpret=True))
    monkeypatch.setattr(kernel, "TOKENS", 96)
    monkeypatch.setattr(kernel, "CHANNELS", 128)


def resets(T, *places):
    """[B, T], True there and, in the second row, at token 5."""
    return jnp.zeros((B, T), bool).at[:, list(places)].set(True).at[1, 5].set(True)


def equations(a, reset_BT, weights):
    """((h, state), gradients of both weighted) in float64, by the equations at the head of `ops.diagonal_scan`."""
    a = {name: np.asarray(x, np.float64) for name, x in a.items()}
    kept = 1.0 if reset_BT is None else 1.0 - np.asarray(reset_BT, np.float64)[:, :, None]
    gate_BTD, T = np.exp(a["log_a_BTD"]) * kept, a["x_BTD"].shape[1]
    h = [a["state_BD"]]
    for t in range(T):
        h.append(gate_BTD[:, t] * h[-1] + a["x_BTD"][:, t])
    dh_BTD, m_BD = (np.asarray(weights[name], np.float64) for name in ("x_BTD", "state_BD"))
    dlog_a, dx = [], []
    for t in reversed(range(T)):
        dx.append(dh_BTD[:, t] + m_BD)
        m_BD = gate_BTD[:, t] * dx[-1]
        dlog_a.append(m_BD * h[t])
    gradients = dict(log_a_BTD=np.stack(dlog_a[::-1], 1), x_BTD=np.stack(dx[::-1], 1), state_BD=m_BD)
    return (np.stack(h[1:], 1), h[-1]), gradients


def compare(a, reset_BT=None, form=diagonal_scan, **spread):
    weights = arrays(a["x_BTD"].shape[1], seed=1)

    def scalar(a):
        h_BTD, state_BD = form(**a, reset_BT=reset_BT, **spread)
        return jnp.sum(h_BTD * weights["x_BTD"]) + jnp.sum(state_BD * weights["state_BD"]), (h_BTD, state_BD)

    with lowering_for("tpu"):
        run = jax.value_and_grad(scalar, has_aux=True)
        assert "pallas_call" in str(jax.make_jaxpr(run)(a))
        (_, values), gradients = jax.jit(run)(a)
    assert_close((values, gradients), equations(a, reset_BT, weights), RMS)


@pytest.mark.parametrize("T", [128, 200, 391])
def test_at_every_length(T):
    compare(arrays(T))


def test_with_resets():
    """At the start, at both sides of the ends of a register and of a block, and at the last token."""
    compare(arrays(), resets(200, 0, 7, 8, 95, 96, 110, 199))


# log_a is in [-1, 0]: what it is multiplied by.
@pytest.mark.parametrize("times", [1e-3, 30.0, 1e30, 0.0])
def test_for_every_gate(times):
    a = arrays()
    compare(a | dict(log_a_BTD=times * a["log_a_BTD"]), resets(200, 100))


@pytest.mark.parametrize("strong", [-1e30, -np.inf])
def test_where_gates_are_mixed(strong):
    """Every third token forgets all, the others nearly nothing."""
    a, third = arrays(), jnp.arange(200)[None, :, None] % 3 == 0
    compare(a | dict(log_a_BTD=jnp.where(third, strong, 1e-3 * a["log_a_BTD"])))


def test_16_bits_in_and_out():
    a = arrays()
    low = a | {name: a[name].astype(jnp.bfloat16) for name in ("log_a_BTD", "x_BTD")}
    with lowering_for("tpu"):
        h_BTD, state_BD = jax.jit(diagonal_scan)(**low)
    assert h_BTD.dtype == jnp.bfloat16 and state_BD.dtype == jnp.float32
    (h, state), _ = equations({name: x.astype(jnp.float32) for name, x in low.items()}, None, a)
    assert_close(state_BD, state, RMS)
    assert_close(h_BTD, h, 2**-8, "one rounding to 8 bits")


@pytest.mark.parametrize("reset", [False, True])
def test_on_each_device(reset):
    """Rows and channels cut over devices."""
    compare(arrays(), resets(200, 9, 103) if reset else None, mesh=make_mesh(data=2, tensor=2))


def test_within_slices_of_the_text():
    """The state of a slice is that after the one before it."""
    mesh, whole, text = make_mesh(sequence=2, tensor=2), PartitionSpec(), PartitionSpec(None, "sequence")

    def sliced(log_a_BTD, x_BTD, state_BD, reset_BT):
        specs = dict(
            in_specs=(text, text, whole, text), out_specs=(text, whole), axis_names={"sequence"}, check_vma=False
        )
        run = functools.partial(diagonal_scan, mesh=mesh)
        return jax.shard_map(run, mesh=mesh, **specs)(log_a_BTD, x_BTD, state_BD, reset_BT)

    compare(arrays(256), resets(256, 9, 130), form=sliced)


def test_says_what_it_cannot_serve():
    x_BTD = arrays(128)["x_BTD"]
    assert kernel.why_not(x_BTD) is None
    assert kernel.why_not(x_BTD, make_mesh(tensor=2)) is None
    assert "128 tokens" in kernel.why_not(x_BTD[:, :127])
    assert "multiple of 128, found 64" in kernel.why_not(x_BTD, make_mesh(tensor=4))
    with lowering_for("tpu"):
        assert "pallas_call" not in str(jax.make_jaxpr(diagonal_scan)(x_BTD[..., :100], x_BTD[..., :100]))
