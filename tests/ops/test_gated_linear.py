"""The chunked form against the reference scan: output, final state and every gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.ops.gated_linear import gated_linear, gated_linear_reference
from tests.closeness import assert_close

B, H, C, E = 2, 2, 6, 5
# Nothing is subtracted in the chunked form, so its error is that of sums of some hundred products, about 3e-7 (printed).
RMS = 2e-6


def arrays(T, kind, seed=0):
    """q, k, v, log a in [-1, 0] and a state."""
    r = np.random.default_rng(seed)
    shapes = dict(q=(B, T, H, C), k=(B, T, H, C), v=(B, T, H, E), state_BHCE=(B, H, C, E))
    made = {name: jnp.asarray(r.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    gate = {"none": None, "scalar": (B, T, H), "vector": (B, T, H, C)}[kind]
    if gate is not None:
        made["log_a"] = -jnp.asarray(r.uniform(0, 1, gate), jnp.float32)
    return made


def call(form, a, reset_BT=None, **options):
    return form(a["q"], a["k"], a["v"], a.get("log_a"), a["state_BHCE"], reset_BT, **options)


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(form, a, reset_BT, weights):
    """(o, S), and the gradients of a random weighting of both with respect to every array."""

    def scalar(a):
        o, s = call(form, a, reset_BT)
        return jnp.sum(o * weights["v"]) + jnp.sum(s * weights["state_BHCE"]), (o, s)

    (_, out), gradients = jax.value_and_grad(scalar, has_aux=True)(a)
    return {"o": out[0], "state": out[1], "gradient": gradients}


@functools.partial(jax.jit, static_argnums=0)
def forward(form, a, reset_BT):
    """(o, S)."""
    return call(form, a, reset_BT)


def compare(a, reset_BT=None, chunk=16, rms=RMS):
    weights = arrays(a["q"].shape[1], "none", seed=1)
    fast = values_and_gradients(fast_form(chunk), a, reset_BT, weights)
    assert_close(fast, values_and_gradients(gated_linear_reference, a, reset_BT, weights), rms)
    return fast


@functools.cache
def fast_form(chunk):
    return functools.partial(gated_linear, chunk=chunk)


def gates(a, which):
    """The arrays with weak, strong, or mixed gates: mixed has log a = -30 beside a = 1."""
    if "log_a" not in a:
        return a
    u = -a["log_a"]
    log_a = {"weak": -1e-3 * u, "moderate": -u, "strong": -20 - 10 * u, "mixed": jnp.where(u > 0.8, -30.0, -(u**8))}[
        which
    ]
    return a | {"log_a": log_a}


@pytest.mark.parametrize("which", ["weak", "moderate", "strong", "mixed"])
@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_fast_is_the_reference_for_every_gate(kind, which):
    a = gates(arrays(37, kind), which)
    compare(a, jnp.zeros((B, 37), bool))
    compare(a, jnp.asarray(np.random.default_rng(2).uniform(size=(B, 37)) < 0.1))


def test_fast_is_the_reference_without_gates():
    a = arrays(37, "none")
    compare(a)
    compare(a, jnp.asarray(np.random.default_rng(2).uniform(size=(B, 37)) < 0.1))


@pytest.mark.parametrize(
    ("T", "kind"), [(1, "none"), (1, "vector"), (2, "scalar"), (3, "vector"), (17, "none"), (16, "scalar")]
)
def test_any_length(T, kind):
    a = arrays(T, kind)
    assert_close(forward(fast_form(4), a, None), forward(gated_linear_reference, a, None), RMS)


@pytest.mark.parametrize("kind", ["none", "scalar", "vector"])
def test_a_reset_at_any_position_cuts_the_past_off(kind):
    T = 11
    a = arrays(T, kind)
    resets_TBT = jnp.repeat(jnp.eye(T, dtype=bool)[:, None], B, axis=1)
    o, s = jax.jit(jax.vmap(lambda reset_BT: call(gated_linear, a, reset_BT, chunk=4)))(resets_TBT)
    whole = forward(gated_linear_reference, a, None)[0]
    for t in range(T):
        # Without the keys before t and the initial state nothing of the past is left.
        later = a | {"k": a["k"].at[:, :t].set(0.0), "state_BHCE": jnp.zeros_like(a["state_BHCE"])}
        o_after, s_after = forward(gated_linear_reference, later, None)
        assert_close((o[t, :, t:], s[t]), (o_after[:, t:], s_after), RMS)
        assert_close(o[t, :, :t], whole[:, :t], RMS)


@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_a_gate_of_zero_and_extreme_gates_stay_finite(kind):
    # log a = -inf is a = 0, and 37 tokens of -1e4 would overflow any form that exponentiates a positive sum.
    a, never = arrays(37, kind), jnp.zeros((B, 37), bool)
    fast = compare(a | {"log_a": jnp.full_like(a["log_a"], -1e4)}, never)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(fast))
    compare(a | {"log_a": a["log_a"].at[:, 5].set(-jnp.inf)}, never)


def test_the_gradient_of_a_gate_keeps_its_digits_behind_strong_gates():
    # Fifteen strong gates, then a weak one: a difference of cumulative sums near -450 would leave 3e-5 of each exponent.
    a = arrays(37, "scalar")
    log_a = jnp.where(jnp.arange(37) % 16 < 15, -30.0, -0.01)[None, :, None] * jnp.ones_like(a["log_a"])
    compare(a | {"log_a": log_a}, jnp.zeros((B, 37), bool))


def test_padding_leaves_the_state_untouched():
    a = arrays(37, "vector")
    still = {name: jnp.zeros_like(a[name]) for name in ("k", "log_a")}
    assert jnp.array_equal(forward(fast_form(16), a | still, None)[1], a["state_BHCE"])


def test_carried_state_is_the_whole():
    a = arrays(23, "vector")
    pieces, state = [], a["state_BHCE"]
    for part in (slice(0, 1), slice(1, 11), slice(11, 12), slice(12, 22), slice(22, 23)):
        piece, state = forward(
            fast_form(8), {n: a[n][:, part] for n in ("q", "k", "v", "log_a")} | {"state_BHCE": state}, None
        )
        pieces.append(piece)
    assert_close((jnp.concatenate(pieces, axis=1), state), forward(gated_linear_reference, a, None), RMS)


def test_bfloat16_in_and_out_with_float32_inside():
    a = arrays(37, "scalar")
    low = a | {n: a[n].astype(jnp.bfloat16) for n in "qkv"}
    o, s = forward(fast_form(16), low, None)
    assert o.dtype == jnp.bfloat16 and s.dtype == jnp.float32
    exact = forward(gated_linear_reference, {n: x.astype(jnp.float32) for n, x in low.items()}, None)
    assert_close(s, exact[1], RMS)
    assert_close(o, exact[0], 2**-8, "one rounding to 8 bits")


def test_nothing_but_the_arguments_is_kept_for_the_backward_pass():
    a = arrays(256, "vector")
    kept = jax.tree.leaves(jax.eval_shape(lambda a: jax.vjp(lambda a: call(gated_linear, a), a)[1], a))
    # A state per token would be 256 H C E numbers more, one per chunk 4 H C E.
    assert sum(x.size for x in kept) == sum(x.size for x in a.values())


def test_no_state_per_token_at_any_time():
    T, n = 1024, 64
    a = {name: jax.ShapeDtypeStruct((1, T, 4, n), jnp.float32) for name in ("q", "k", "v", "log_a")}
    loss = lambda a: jnp.sum(gated_linear(a["q"], a["k"], a["v"], a["log_a"][..., 0])[0])
    peak = jax.jit(jax.grad(loss)).lower(a).compile().memory_analysis().temp_size_in_bytes
    print(f"{peak / (4 * 4 * T):.0f} numbers per token and head; a state has {n * n}")
    assert peak < 4 * 4 * T * n * n / 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(chunk=48), "chunk must be a power of two, found 48"),
        (dict(impl="chunked"), "no form of gated_linear is called 'chunked'; did you mean 'chunk'"),
        (dict(log_a=jnp.zeros((B, 3))), r"log_a has shape \(2, 3\), expected \(2, 3, 2\) or \(2, 3, 2, 6\)"),
        (dict(state_BHCE=jnp.zeros((B, H, E, C))), r"state has shape \(2, 2, 5, 6\), expected \(2, 2, 6, 5\)"),
    ],
)
def test_impossible_arguments_say_which(change, message):
    a = arrays(3, "none")
    with pytest.raises(ValueError, match=message):
        gated_linear(a["q"], a["k"], a["v"], **change)
