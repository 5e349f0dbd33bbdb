"""The fast forms against the reference scan: output, final state and every gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.target import lowering_for
from jaxeff.ops.diagonal_scan import diagonal_scan, diagonal_scan_reference
from tests.closeness import assert_close

B, D = 2, 5
# Both forms add the same products in another order: some ten terms, 1e-7 (printed).
RMS = 1e-6


def arrays(T, seed=0):
    """log_a in [-1, 0], x and a state."""
    r = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(r.standard_normal(shape), jnp.float32)
    log_a_BTD = jnp.asarray(-r.uniform(size=(B, T, D)), jnp.float32)
    return {"log_a_BTD": log_a_BTD, "x_BTD": normal(B, T, D), "state_BD": normal(B, D)}


@functools.cache
def fast_form(platform):
    def form(**arguments):
        with lowering_for(platform):
            return diagonal_scan(**arguments, chunk=8)

    return form


@functools.partial(jax.jit, static_argnums=0)
def forward(form, a, reset_BT=None):
    """(h, state)."""
    return form(**a, reset_BT=reset_BT)


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(form, a, reset_BT=None):
    """(h, state), and the gradients of a random weighting of both with respect to every array."""
    weights = arrays(a["x_BTD"].shape[1], seed=1)

    def scalar(a):
        h, state = form(**a, reset_BT=reset_BT)
        return jnp.sum(h * weights["x_BTD"]) + jnp.sum(state * weights["state_BD"]), (h, state)

    (_, out), gradients = jax.value_and_grad(scalar, has_aux=True)(a)
    return {"h": out[0], "state": out[1], "gradient": gradients}


PLATFORMS = ("cpu", "gpu")
every_platform = pytest.mark.parametrize("platform", PLATFORMS)


def compare(platform, a, reset_BT=None):
    fast = values_and_gradients(fast_form(platform), a, reset_BT)
    assert_close(fast, values_and_gradients(diagonal_scan_reference, a, reset_BT), RMS)
    return fast


def resets_at(T, *times):
    """[B, T], True at those times in the first row and one later in the others."""
    at = np.zeros((B, T), bool)
    for row in range(B):
        at[row, [min(t + row, T - 1) for t in times]] = True
    return jnp.asarray(at)


def loop(a, reset_BT=None):
    """The equations in float64."""
    log_a, x, state = (np.asarray(value, np.float64) for value in a.values())
    h, state = np.zeros(x.shape), state.copy()
    for b, t in np.ndindex(x.shape[:2]):
        before = state[b] * (reset_BT is None or not reset_BT[b, t])
        h[b, t] = state[b] = np.exp(log_a[b, t]) * before + x[b, t]
    return h, state


def test_the_reference_is_the_equations():
    for reset_BT in (None, resets_at(9, 0, 4)):
        assert_close(forward(diagonal_scan_reference, arrays(9), reset_BT), loop(arrays(9), reset_BT), RMS)


# log_a is in [-1, 0]: what it is multiplied by.
GATES = {"weak": 1e-3, "moderate": 1.0, "strong": 30.0, "zero": 1e30, "one": 0.0}


@every_platform
@pytest.mark.parametrize("which", GATES)
def test_fast_is_the_reference_for_every_gate(which, platform):
    # Chunks of 8: resets at the start, at both sides of a chunk's end, inside one and at the last token.
    a = arrays(29)
    a |= {"log_a_BTD": GATES[which] * a["log_a_BTD"]}
    for reset_BT in (resets_at(29), resets_at(29, 0, 7, 8, 12, 15, 28)):
        fast = compare(platform, a, reset_BT)
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(fast))


@every_platform
@pytest.mark.parametrize("strong", [-1e3, -1e30, -np.inf])
def test_fast_is_the_reference_where_gates_are_mixed(strong, platform):
    # Every third token forgets all, the others nearly nothing: no gradient may pass through a quotient of gates.
    a = arrays(37)
    third = jnp.arange(37)[None, :, None] % 3 == 0
    fast = compare(platform, a | {"log_a_BTD": jnp.where(third, strong, 1e-3 * a["log_a_BTD"])})
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(fast))


@every_platform
@pytest.mark.parametrize("T", [1, 2, 3, 8, 16, 17])
def test_any_length(T, platform):
    compare(platform, arrays(T))
    compare(platform, arrays(T), resets_at(T, 0))


@every_platform
def test_a_reset_at_any_position_cuts_the_past_off(platform):
    T = 11
    a, resets_TBT = arrays(T), jnp.repeat(jnp.eye(T, dtype=bool)[:, None], B, axis=1)
    h, state = jax.jit(jax.vmap(lambda reset_BT: fast_form(platform)(**a, reset_BT=reset_BT)))(resets_TBT)
    whole = forward(diagonal_scan_reference, a)[0]
    for t in range(T):
        # Without the inputs before t and the initial state nothing of the past is left.
        later = a | {"x_BTD": a["x_BTD"].at[:, :t].set(0.0), "state_BD": jnp.zeros_like(a["state_BD"])}
        h_after, state_after = forward(diagonal_scan_reference, later)
        assert_close((h[t, :, t:], state[t]), (h_after[:, t:], state_after), RMS)
        assert_close(h[t, :, :t], whole[:, :t], RMS)


@every_platform
def test_the_gate_of_a_reset_has_no_effect(platform):
    reset_BT = resets_at(19, 0, 5, 8)
    a = arrays(19)
    other = jnp.where(reset_BT[:, :, None], -3.0, a["log_a_BTD"])
    fast = values_and_gradients(fast_form(platform), a | {"log_a_BTD": other}, reset_BT)
    assert_close(fast, values_and_gradients(diagonal_scan_reference, a, reset_BT), RMS)
    assert not np.any(np.asarray(fast["gradient"]["log_a_BTD"])[np.asarray(reset_BT)])


@every_platform
@pytest.mark.parametrize("T", [1, 19])
def test_padding_leaves_the_state_untouched(T, platform):
    a = jax.tree.map(jnp.zeros_like, arrays(T)) | {"state_BD": arrays(T)["state_BD"]}
    h, state = forward(fast_form(platform), a)
    assert jnp.array_equal(state, a["state_BD"]) and jnp.array_equal(h[:, -1], state)


@every_platform
def test_carried_state_is_the_whole(platform):
    a, reset_BT = arrays(23), resets_at(23, 3, 11)
    pieces, state = [], a["state_BD"]
    for part in (slice(0, 11), slice(11, 12), slice(12, 23)):
        piece = {name: a[name][:, part] for name in ("log_a_BTD", "x_BTD")}
        h, state = forward(fast_form(platform), piece | {"state_BD": state}, reset_BT[:, part])
        pieces.append(h)
    assert_close((jnp.concatenate(pieces, axis=1), state), forward(diagonal_scan_reference, a, reset_BT), RMS)


def test_bfloat16_in_and_out_with_float32_inside():
    a = arrays(19)
    low = a | {name: a[name].astype(jnp.bfloat16) for name in ("log_a_BTD", "x_BTD")}
    h, state = forward(fast_form("cpu"), low)
    assert h.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    exact = forward(diagonal_scan_reference, {name: x.astype(jnp.float32) for name, x in low.items()})
    assert_close(state, exact[1], RMS)
    assert_close(h, exact[0], 2**-8, "one rounding to 8 bits")


@pytest.mark.parametrize("recompute", [True, False])
def test_what_is_kept_for_the_backward_pass(recompute):
    """As many numbers as there are arguments: these, or h in the place of x."""
    form = functools.partial(diagonal_scan, recompute=recompute)
    kept = jax.tree.leaves(jax.eval_shape(lambda a: jax.vjp(lambda a: form(**a), a)[1], arrays(256)))
    assert 0 <= sum(x.size for x in kept) - sum(x.size for x in arrays(256).values()) < 10  # scalars


@pytest.mark.shipped
@every_platform
def test_memory_is_a_few_times_the_output(platform):
    T, d = 4096, 64
    a = {name: jax.ShapeDtypeStruct((1, T, d), jnp.float32) for name in ("log_a_BTD", "x_BTD")}

    def loss(a):
        with lowering_for(platform):
            return jnp.sum(jnp.square(diagonal_scan(**a)[0]))

    peak = jax.jit(jax.grad(loss)).lower(a).compile().memory_analysis().temp_size_in_bytes
    print(f"{platform}: {peak / (4 * d * T):.1f} numbers per token and channel")
    assert peak < 4 * d * T * 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(chunk=0), "chunk must be at least 1, found 0"),
        (dict(impl="fats"), "no form of diagonal_scan is called 'fats'; did you mean 'fast'"),
        (dict(x_BTD=jnp.zeros((B, 3))), r"x has shape \(2, 3\), expected \(B, T, D\) with T at least 1"),
        (dict(x_BTD=jnp.zeros((B, 0, D))), r"x has shape \(2, 0, 5\), expected \(B, T, D\) with T at least 1"),
        (dict(log_a_BTD=jnp.zeros((B, 3, 1))), r"log_a has shape \(2, 3, 1\), expected \(2, 3, 5\)"),
        (dict(state_BD=jnp.zeros((D, B))), r"state has shape \(5, 2\), expected \(2, 5\)"),
        (dict(reset_BT=jnp.zeros((3, B), bool)), r"reset has shape \(3, 2\), expected \(2, 3\)"),
    ],
)
def test_impossible_arguments_say_which(change, message):
    with pytest.raises(ValueError, match=message):
        diagonal_scan(**arrays(3) | change)
