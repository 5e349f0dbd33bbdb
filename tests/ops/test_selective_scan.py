"""The chunked form against the reference scan: output, final state and every gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.target import lowering_for
from jaxeff.ops.selective_scan import selective_scan, selective_scan_reference
from tests.closeness import assert_close

B, D, N = 2, 5, 3
# Both forms add the same products in another order: sums over channels and time of some ten to hundred, 2e-7 (printed).
RMS = 2e-6


def arrays(T, seed=0):
    """x, dt in [0, 1], a in [-3, 0], b, c and a state."""
    r = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(r.standard_normal(shape), jnp.float32)
    uniform = lambda *shape: jnp.asarray(r.uniform(size=shape), jnp.float32)
    return {
        "x_BTD": normal(B, T, D), "dt_BTD": uniform(B, T, D), "a_DN": -3 * uniform(D, N),
        "b_BTN": normal(B, T, N), "c_BTN": normal(B, T, N), "state_BDN": normal(B, D, N),
    }  # fmt: skip


@functools.cache
def fast_form(chunk):
    return functools.partial(selective_scan, chunk=chunk)


@functools.partial(jax.jit, static_argnums=0)
def forward(form, a, reset_BT=None):
    """(y, h)."""
    return form(**a, reset_BT=reset_BT)


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(form, a, reset_BT=None):
    """(y, h), and the gradients of a random weighting of both with respect to every array."""
    weights = arrays(a["x_BTD"].shape[1], seed=1)

    def scalar(a):
        y, h = form(**a, reset_BT=reset_BT)
        return jnp.sum(y * weights["x_BTD"]) + jnp.sum(h * weights["state_BDN"]), (y, h)

    (_, out), gradients = jax.value_and_grad(scalar, has_aux=True)(a)
    return {"y": out[0], "state": out[1], "gradient": gradients}


def compare(a, reset_BT=None, chunk=8):
    fast = values_and_gradients(fast_form(chunk), a, reset_BT)
    assert_close(fast, values_and_gradients(selective_scan_reference, a, reset_BT), RMS)
    return fast


def resets_at(T, *times):
    """[B, T], True at those times in the first row and one later in the others."""
    at = np.zeros((B, T), bool)
    for row in range(B):
        at[row, [min(t + row, T - 1) for t in times]] = True
    return jnp.asarray(at)


def loop(a, reset_BT=None):
    """The equations in float64."""
    x, dt, A, b, c, h = (np.asarray(value, np.float64) for value in a.values())
    y, h = np.zeros(x.shape), h.copy()
    for r, t, d in np.ndindex(x.shape):
        before = h[r, d] * (reset_BT is None or not reset_BT[r, t])
        h[r, d] = np.exp(dt[r, t, d] * A[d]) * before + dt[r, t, d] * b[r, t] * x[r, t, d]
        y[r, t, d] = c[r, t] @ h[r, d]
    return y, h


def test_the_reference_is_the_equations():
    for reset_BT in (None, resets_at(9, 0, 4)):
        assert_close(forward(selective_scan_reference, arrays(9), reset_BT), loop(arrays(9), reset_BT), RMS)


# dt is in [0, 1] and a in [-3, 0]: what both are multiplied by.
GATES = {"weak": (1e-3, 1.0), "moderate": (1.0, 1.0), "strong": (10.0, 10.0), "zero": (100.0, 1e4), "one": (1.0, 0.0)}


@pytest.mark.parametrize("which", GATES)
def test_fast_is_the_reference_for_every_gate(which):
    # Chunks of 8: resets at the start, at both sides of a chunk's end, inside one and at the last token.
    a, (by_dt, by_a) = arrays(29), GATES[which]
    a |= {"dt_BTD": a["dt_BTD"] * by_dt, "a_DN": a["a_DN"] * by_a}
    for reset_BT in (resets_at(29), resets_at(29, 0, 7, 8, 12, 15, 28)):
        fast = compare(a, reset_BT)
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(fast))


def test_fast_is_the_reference_where_gates_are_mixed():
    # Every third token forgets all, the others nearly nothing: no gradient may pass through a quotient of gates.
    a = arrays(37)
    compare(a | {"dt_BTD": jnp.where(jnp.arange(37)[None, :, None] % 3 == 0, 1e3, 1e-3) * a["dt_BTD"]})


@pytest.mark.parametrize("T", [1, 2, 3, 8, 16, 17])
def test_any_length(T):
    compare(arrays(T))
    compare(arrays(T), resets_at(T, 0))


def test_the_form_for_accelerators_is_the_reference():
    with lowering_for("gpu"):
        fast = values_and_gradients(fast_form(8), arrays(19), resets_at(19, 3))
    assert_close(fast, values_and_gradients(selective_scan_reference, arrays(19), resets_at(19, 3)), RMS)


def test_a_reset_at_any_position_cuts_the_past_off():
    T = 11
    a, resets_TBT = arrays(T), jnp.repeat(jnp.eye(T, dtype=bool)[:, None], B, axis=1)
    y, h = jax.jit(jax.vmap(lambda reset_BT: selective_scan(**a, reset_BT=reset_BT, chunk=4)))(resets_TBT)
    whole = forward(selective_scan_reference, a)[0]
    for t in range(T):
        # Without the inputs before t and the initial state nothing of the past is left.
        later = a | {"x_BTD": a["x_BTD"].at[:, :t].set(0.0), "state_BDN": jnp.zeros_like(a["state_BDN"])}
        y_after, h_after = forward(selective_scan_reference, later)
        assert_close((y[t, :, t:], h[t]), (y_after[:, t:], h_after), RMS)
        assert_close(y[t, :, :t], whole[:, :t], RMS)


@pytest.mark.parametrize("T", [1, 19])
def test_padding_leaves_the_state_untouched(T):
    a = arrays(T)
    a |= {"dt_BTD": jnp.zeros_like(a["dt_BTD"])}
    assert jnp.array_equal(forward(fast_form(8), a)[1], a["state_BDN"])


def test_carried_state_is_the_whole():
    a, reset_BT = arrays(23), resets_at(23, 3, 11)
    pieces, state = [], a["state_BDN"]
    for part in (slice(0, 11), slice(11, 12), slice(12, 23)):
        piece = {name: x[:, part] if "T" in name.split("_")[1] else x for name, x in a.items()}
        y, state = forward(fast_form(8), piece | {"state_BDN": state}, reset_BT[:, part])
        pieces.append(y)
    assert_close((jnp.concatenate(pieces, axis=1), state), forward(selective_scan_reference, a, reset_BT), RMS)


def test_bfloat16_in_and_out_with_float32_inside():
    a = arrays(19)
    low = a | {name: a[name].astype(jnp.bfloat16) for name in ("x_BTD", "b_BTN", "c_BTN")}
    y, h = forward(fast_form(8), low)
    assert y.dtype == jnp.bfloat16 and h.dtype == jnp.float32
    exact = forward(selective_scan_reference, {name: x.astype(jnp.float32) for name, x in low.items()})
    assert_close(h, exact[1], RMS)
    assert_close(y, exact[0], 2**-8, "one rounding to 8 bits")


@pytest.mark.parametrize(("recompute", "states"), [(True, 0), (False, 256 // 8)])
def test_what_is_kept_for_the_backward_pass(recompute, states):
    """The arguments, and one state a chunk unless these are computed again."""
    form = functools.partial(selective_scan, chunk=8, recompute=recompute)
    kept = jax.tree.leaves(jax.eval_shape(lambda a: jax.vjp(lambda a: form(**a), a)[1], arrays(256)))
    expected = sum(x.size for name, x in arrays(256).items() if recompute or name != "state_BDN")
    assert 0 <= sum(x.size for x in kept) - expected - states * B * D * N < 10  # scalars


@pytest.mark.shipped
def test_no_state_per_token_at_any_time():
    T, d, n = 2048, 64, 16
    shapes = {"x_BTD": (1, T, d), "dt_BTD": (1, T, d), "a_DN": (d, n), "b_BTN": (1, T, n), "c_BTN": (1, T, n)}
    a = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    loss = lambda a: jnp.sum(selective_scan(**a)[0])
    peak = jax.jit(jax.grad(loss)).lower(a).compile().memory_analysis().temp_size_in_bytes
    print(f"{peak / (4 * d * T):.1f} numbers per token and channel; a state has {n}")
    assert peak < 4 * d * T * n / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(chunk=0), "chunk must be at least 1, found 0"),
        (dict(impl="chunked"), "no form of selective_scan is called 'chunked'; did you mean 'chunk'"),
        (dict(x_BTD=jnp.zeros((B, 3))), r"x has shape \(2, 3\), expected \[batch, time, channels\]"),
        (dict(a_DN=jnp.zeros(D)), r"a has shape \(5,\), expected \[channels, state\]"),
        (dict(a_DN=jnp.zeros((N, D))), r"a has shape \(3, 5\), expected \(5, 5\)"),
        (dict(dt_BTD=jnp.zeros((B, 3, 1))), r"dt has shape \(2, 3, 1\), expected \(2, 3, 5\)"),
        (dict(b_BTN=jnp.zeros((B, 3, D))), r"b has shape \(2, 3, 5\), expected \(2, 3, 3\)"),
        (dict(c_BTN=jnp.zeros((B, 4, N))), r"c has shape \(2, 4, 3\), expected \(2, 3, 3\)"),
        (dict(state_BDN=jnp.zeros((B, N, D))), r"state has shape \(2, 3, 5\), expected \(2, 5, 3\)"),
        (dict(reset_BT=jnp.zeros((3, B), bool)), r"reset has shape \(3, 2\), expected \(2, 3\)"),
    ],
)
def test_impossible_arguments_say_which(change, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(**arrays(3) | change)
