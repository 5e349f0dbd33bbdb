"""The chunked form against the reference scan: output, final state and every gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.ops.delta_rule import delta_rule, delta_rule_reference
from tests.closeness import assert_close

B, H, C, E = 2, 2, 6, 5
# Sums of some hundred products, and a triangular inverse whose entries stay of size one: about 5e-7 (printed).
RMS = 3e-6
# The delta rule, its eigenvalues down to -1, a gate a head, a gate a channel, and RWKV-7's keys that are none of u and w.
KINDS = ["delta", "negative", "scalar", "vector", "free"]


def arrays(T, kind, seed=0, C=C):
    """The arrays of `delta_rule` by name, a state among them; |w| = 1, as the recurrence grows without bounds else."""
    r = np.random.default_rng(seed)
    q, k, other = r.standard_normal((3, B, T, H, C))
    v, state = r.standard_normal((B, T, H, E)), r.standard_normal((B, H, C, E))
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    beta = r.uniform(0, 2 if kind == "negative" else 1, (B, T, H, 1))
    made = dict(q=q, k=beta * k, v=v, u=-beta * k, w=k, state_BHCE=state)
    if kind == "scalar":
        made |= dict(log_a=-r.uniform(0, 1, (B, T, H)))
    if kind in ("vector", "free"):
        made |= dict(log_a=-r.uniform(0, 1, (B, T, H, C)))
    if kind == "free":
        made |= dict(k=0.5 * other, u=-k * r.uniform(0, 1, k.shape))
    return {name: jnp.asarray(x, jnp.float32) for name, x in made.items()}


def call(form, a, reset_BT=None, **options):
    names = ("q", "k", "v", "u", "w", "log_a", "state_BHCE")
    return form(*(a.get(name) for name in names), reset_BT, **options)


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(form, a, reset_BT, weights):
    """(o, S), and the gradients of a random weighting of both with respect to every array."""

    def scalar(a):
        o, s = call(form, a, reset_BT)
        return jnp.sum(o.astype(jnp.float32) * weights["v"]) + jnp.sum(s * weights["state_BHCE"]), (o, s)

    (_, out), gradients = jax.value_and_grad(scalar, has_aux=True)(a)
    return {"o": out[0], "state": out[1], "gradient": gradients}


@functools.partial(jax.jit, static_argnums=0)
def forward(form, a, reset_BT):
    """(o, S)."""
    return call(form, a, reset_BT)


@functools.cache
def fast_form(chunk):
    return functools.partial(delta_rule, chunk=chunk)


def compare(a, reset_BT=None, chunk=16, rms=RMS):
    weights = arrays(a["q"].shape[1], "delta", seed=1, C=a["q"].shape[-1])
    fast = values_and_gradients(fast_form(chunk), a, reset_BT, weights)
    assert_close(fast, values_and_gradients(delta_rule_reference, a, reset_BT, weights), rms)
    return fast


def resets(T, share=0.1):
    return jnp.asarray(np.random.default_rng(2).uniform(size=(B, T)) < share)


def loop(a, reset_BT):
    """The equation, head by head in float64."""
    q, k, v, u, w, state = (np.asarray(a[name], np.float64) for name in ("q", "k", "v", "u", "w", "state_BHCE"))
    o, state = np.zeros(v.shape), state.copy()
    for b, t, h in np.ndindex(v.shape[:3]):
        before = state[b, h] * (not reset_BT[b, t])
        gate = np.exp(np.broadcast_to(a["log_a"][b, t, h], w.shape[-1])) if "log_a" in a else np.ones(w.shape[-1])
        step = np.diag(gate) + np.outer(u[b, t, h], w[b, t, h])
        state[b, h] = step @ before + np.outer(k[b, t, h], v[b, t, h])
        o[b, t, h] = q[b, t, h] @ state[b, h]
    return o, state


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_equation(kind):
    a, reset_BT = arrays(9, kind), resets(9, 0.3)
    assert_close(forward(delta_rule_reference, a, reset_BT), loop(a, np.asarray(reset_BT)), RMS)


@pytest.mark.parametrize("kind", KINDS)
def test_fast_is_the_reference(kind):
    compare(arrays(37, kind))
    compare(arrays(37, kind), resets(37))


@pytest.mark.parametrize("strength", ["weak", "strong", "mixed"])
@pytest.mark.parametrize("kind", ["scalar", "vector", "free"])
def test_fast_is_the_reference_for_every_gate(kind, strength):
    a = arrays(37, kind)
    u = -a["log_a"]
    gates = {"weak": -1e-3 * u, "strong": -20 - 10 * u, "mixed": jnp.where(u > 0.8, -30.0, -(u**8))}
    compare(a | {"log_a": gates[strength]}, resets(37))


@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_a_gate_of_zero_and_extreme_gates_stay_finite(kind):
    a, never = arrays(37, kind), jnp.zeros((B, 37), bool)
    for log_a in (jnp.full_like(a["log_a"], -1e4), a["log_a"].at[:, 5].set(-jnp.inf)):
        found = compare(a | {"log_a": log_a}, never)
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(found))


@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_the_gradient_of_a_gate_keeps_its_digits_behind_strong_gates(kind):
    # Fifteen strong gates, then a weak one: a difference of cumulative sums near -450 would leave 3e-5 of each exponent.
    a = arrays(37, kind)
    weak = (jnp.arange(37) % 16 == 15).reshape(1, 37, *[1] * (a["log_a"].ndim - 2))
    compare(a | {"log_a": jnp.where(weak, -0.01, -30.0) * jnp.ones_like(a["log_a"])}, jnp.zeros((B, 37), bool))


def test_the_inverse_keeps_its_digits_where_powers_lose_them():
    """Keys that are all alike and beta = 2 make a triangle of twos, whose powers reach 1e18 at 64 tokens. Both forms lose a few
    digits over 64 reflections of one axis."""
    a = arrays(64, "negative", C=4)
    k = jnp.ones_like(a["w"]) / 2
    compare(a | {"k": 2 * k, "u": -2 * k, "w": k}, chunk=64, rms=2e-5)


@pytest.mark.parametrize(("T", "kind"), [(1, "vector"), (2, "scalar"), (3, "vector"), (17, "delta"), (16, "scalar")])
def test_any_length(T, kind):
    a = arrays(T, kind)
    assert_close(forward(fast_form(4), a, None), forward(delta_rule_reference, a, None), RMS)


@pytest.mark.parametrize("kind", ["delta", "scalar", "vector"])
def test_a_reset_at_any_position_cuts_the_past_off(kind):
    T = 11
    a = arrays(T, kind)
    resets_TBT = jnp.repeat(jnp.eye(T, dtype=bool)[:, None], B, axis=1)
    o, s = jax.jit(jax.vmap(lambda reset_BT: call(delta_rule, a, reset_BT, chunk=4)))(resets_TBT)
    whole = forward(delta_rule_reference, a, None)[0]
    for t in range(T):
        # Without the keys before t and the initial state nothing of the past is left.
        later = a | {"k": a["k"].at[:, :t].set(0.0), "state_BHCE": jnp.zeros_like(a["state_BHCE"])}
        o_after, s_after = forward(delta_rule_reference, later, None)
        assert_close((o[t, :, t:], s[t]), (o_after[:, t:], s_after), RMS)
        assert_close(o[t, :, :t], whole[:, :t], RMS)


def test_padding_leaves_the_state_untouched():
    a = arrays(37, "vector")
    still = {name: jnp.zeros_like(a[name]) for name in ("k", "u", "log_a")}
    assert jnp.array_equal(forward(fast_form(16), a | still, None)[1], a["state_BHCE"])


def test_carried_state_is_the_whole():
    a = arrays(23, "vector")
    pieces, state = [], a["state_BHCE"]
    for part in (slice(0, 1), slice(1, 11), slice(11, 12), slice(12, 22), slice(22, 23)):
        piece = {name: x if name == "state_BHCE" else x[:, part] for name, x in a.items()}
        o, state = forward(fast_form(8), piece | {"state_BHCE": state}, None)
        pieces.append(o)
    assert_close((jnp.concatenate(pieces, axis=1), state), forward(delta_rule_reference, a, None), RMS)


def test_bfloat16_in_and_out_with_float32_inside():
    a = arrays(37, "scalar")
    low = a | {name: a[name].astype(jnp.bfloat16) for name in "qkvuw"}
    o, s = forward(fast_form(16), low, None)
    assert o.dtype == jnp.bfloat16 and s.dtype == jnp.float32
    exact = forward(delta_rule_reference, {name: x.astype(jnp.float32) for name, x in low.items()}, None)
    assert_close(s, exact[1], RMS)
    assert_close(o, exact[0], 2**-8, "one rounding to 8 bits")


def test_nothing_but_the_arguments_is_kept_for_the_backward_pass():
    a = arrays(128, "vector")
    kept = jax.tree.leaves(jax.eval_shape(lambda a: jax.vjp(lambda a: call(delta_rule, a), a)[1], a))
    assert sum(x.size for x in kept) == sum(x.size for x in a.values())


@pytest.mark.shipped
@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_no_state_per_token_at_any_time(kind):
    T, n = 512, 128
    a = {name: jax.ShapeDtypeStruct((1, T, 4, n), jnp.float32) for name in "qkvuw"}
    a["log_a"] = jax.ShapeDtypeStruct((1, T, 4, n) if kind == "vector" else (1, T, 4), jnp.float32)
    loss = lambda a: jnp.sum(call(delta_rule, a)[0])
    peak = jax.jit(jax.grad(loss)).lower(a).compile().memory_analysis().temp_size_in_bytes
    print(f"{peak / (4 * 4 * T):.0f} numbers per token and head; a state has {n * n}")
    assert peak < 4 * 4 * T * n * n / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(chunk=48), "chunk must be a power of two, found 48"),
        (dict(impl="chunked"), "no form of delta_rule is called 'chunked'; did you mean 'chunk'"),
        (dict(log_a=jnp.zeros((B, 3))), r"log_a has shape \(2, 3\), expected \(2, 3, 2\) or \(2, 3, 2, 6\)"),
        (dict(reset_BT=jnp.zeros((3, B), bool)), r"reset has shape \(3, 2\), expected \(2, 3\)"),
        (dict(q_BTHC=jnp.zeros((B, 3, C))), r"q has shape \(2, 3, 6\), expected \[batch, time, heads, channels\]"),
        (dict(u_BTHC=jnp.zeros((B, 3, 1, C))), r"u has shape \(2, 3, 1, 6\), expected \(2, 3, 2, 6\)"),
        (dict(v_BTHE=jnp.zeros((B, 4, H, E))), r"v has shape \(2, 4, 2, 5\), expected \(2, 3, 2, 5\)"),
        (dict(state_BHCE=jnp.zeros((B, H, E, C))), r"state has shape \(2, 2, 5, 6\), expected \(2, 2, 6, 5\)"),
    ],
)
def test_impossible_arguments_say_which(change, message):
    a = arrays(3, "delta")
    with pytest.raises(ValueError, match=message):
        delta_rule(**{f"{n}_BTH{'E' if n == 'v' else 'C'}": a[n] for n in "qkvuw"} | change)
