"""The chunked form against the reference scan: output, final state and every gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.target import lowering_for
from jaxeff.evaluate.flops import flops
from jaxeff.ops.gated_linear import _by_sums, gated_linear, gated_linear_reference
from tests.closeness import assert_close

B, H, C, E = 2, 2, 6, 5
# Nothing is subtracted in the chunked form, so its error is that of sums of some hundred products, about 3e-7 (printed).
RMS = 2e-6
KINDS = ["none", "scalar", "vector"]


def arrays(T, kind, seed=0, H=H, G=None, bonus=False):
    """q, k of G (or H) heads, v, log a in [-1, 0], a state and, if asked for, a bonus."""
    r, G = np.random.default_rng(seed), G or H
    shapes = dict(q=(B, T, G, C), k=(B, T, G, C), v=(B, T, H, E), state_BHCE=(B, H, C, E))
    shapes |= dict(bonus_HC=(H, C)) if bonus else {}
    made = {name: jnp.asarray(r.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    gate = {"none": None, "scalar": (B, T, H), "vector": (B, T, H, C)}[kind]
    if gate is not None:
        made["log_a"] = -jnp.asarray(r.uniform(0, 1, gate), jnp.float32)
    return made


def call(form, a, reset_BT=None, **options):
    return form(a["q"], a["k"], a["v"], a.get("log_a"), a["state_BHCE"], reset_BT, a.get("bonus_HC"), **options)


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


def compare(a, reset_BT=None, chunk=16, rms=RMS):
    weights = arrays(a["q"].shape[1], "none", seed=1, H=a["v"].shape[2])
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


def loop(a, reset_BT=None):
    """The equations, head by head in float64."""
    q, k, v, log_a, state, u = (
        np.asarray(a[name], np.float64) if name in a else None
        for name in ("q", "k", "v", "log_a", "state_BHCE", "bonus_HC")
    )
    o, state = np.zeros(v.shape), state.copy()
    for b, t, h in np.ndindex(v.shape[:3]):
        g = h // (v.shape[2] // q.shape[2])
        before = state[b, h] * (reset_BT is None or not reset_BT[b, t])
        kv = np.outer(k[b, t, g], v[b, t, h])
        decay = 1.0 if log_a is None else np.exp(np.broadcast_to(log_a[b, t, h], C))[:, None]
        state[b, h] = decay * before + kv
        read = state[b, h] if u is None else before + u[h][:, None] * kv
        o[b, t, h] = q[b, t, g] @ read
    return o, state


@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_equations(kind, bonus):
    a = arrays(9, kind, H=4, G=2, bonus=bonus)
    resets = np.random.default_rng(2).uniform(size=(B, 9)) < 0.3
    for reset_BT in (None, resets):
        reset = None if reset_BT is None else jnp.asarray(reset_BT)
        assert_close(forward(gated_linear_reference, a, reset), loop(a, reset_BT), RMS)


def resets_at(T, *times):
    """[B, T], True at those times in the first row and, for a difference, one later in the others."""
    at = np.zeros((B, T), bool)
    for row in range(B):
        at[row, [min(t + row, T - 1) for t in times]] = True
    return jnp.asarray(at)


@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("G", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_groups_and_bonus_are_the_reference(kind, G, bonus):
    # Chunks of 8: resets at the start, at both sides of a chunk's end, inside one and at the last token.
    a = arrays(29, kind, H=4, G=G, bonus=bonus)
    if G == 2:
        compare(a, None, chunk=8)
    compare(a, resets_at(29, 0, 7, 8, 12, 15, 28), chunk=8)


@pytest.mark.parametrize("log_a", [-1e-4, -50.0, -1e30])
@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_bonus_with_weak_strong_and_zero_gates(kind, log_a):
    a = arrays(29, kind, H=4, G=2, bonus=True)
    # Every third gate is moderate: between strong ones it counts, and its gradient has digits only if sums are exclusive.
    strength = jnp.where(jnp.arange(29) % 3 == 0, 1.0, -log_a).reshape(1, 29, *[1] * (a["log_a"].ndim - 2))
    fast = compare(a | {"log_a": a["log_a"] * strength}, resets_at(29, 8, 20), chunk=8)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(fast))


def test_bonus_reads_the_state_undecayed_whatever_the_own_gate():
    # The gate of a token acts after the token has read: strong or not, o_t alone does not tell.
    a = arrays(16, "vector", bonus=True)
    forget = a | {"log_a": a["log_a"].at[:, 5].set(-1e30)}
    (o, _), (o_forget, _) = forward(fast_form(8), a, None), forward(fast_form(8), forget, None)
    assert jnp.array_equal(o[:, :6], o_forget[:, :6]) and not jnp.allclose(o[:, 6:], o_forget[:, 6:])


@pytest.mark.parametrize("kind", KINDS)
def test_bonus_after_a_reset_is_the_token_alone(kind):
    a = arrays(13, kind, H=4, G=2, bonus=True)
    for t in (0, 3, 4, 12):
        o, _ = forward(fast_form(4), a, resets_at(13, t))
        q, k = (jnp.repeat(a[n][0, t], 2, axis=0) for n in "qk")
        assert_close(o[0, t], jnp.sum(q * a["bonus_HC"] * k, axis=-1, keepdims=True) * a["v"][0, t], RMS)


@pytest.mark.parametrize("form", [gated_linear, gated_linear_reference])
@pytest.mark.parametrize(("T", "G"), [(1, 4), (9, 1), (20, 2)])
def test_gains_and_skips_are_factors_of_values(form, T, G):
    a, r = arrays(T, "scalar", H=4, G=G), np.random.default_rng(1)
    gain_BTH, skip_H = (
        jnp.asarray(r.uniform(0, 2, (B, T, 4)), jnp.float32),
        jnp.asarray(r.standard_normal(4), jnp.float32),
    )
    o, state = call(form, a | {"v": gain_BTH[..., None] * a["v"]})
    found = call(form, a, gain_BTH=gain_BTH, skip_H=skip_H)
    assert_close(found, (o + skip_H[None, None, :, None] * a["v"], state), RMS)


@pytest.mark.parametrize(("T", "G", "kind"), [(1, 1, "none"), (1, 2, "vector"), (2, 4, "scalar"), (3, 1, "vector")])
def test_short_with_groups_and_bonus(T, G, kind):
    for reset_BT in (None, resets_at(T, 0)):
        compare(arrays(T, kind, H=4, G=G, bonus=True), reset_BT)


@pytest.mark.parametrize("kind", KINDS)
def test_two_halves_with_groups_and_bonus_are_the_whole(kind):
    a, reset_BT = arrays(23, kind, H=4, G=2, bonus=True), resets_at(23, 3, 11)
    pieces, state = [], a["state_BHCE"]
    for part in (slice(0, 11), slice(11, 12), slice(12, 23)):
        piece = {n: x[:, part] if n in ("q", "k", "v", "log_a") else x for n, x in a.items()}
        o, state = forward(fast_form(8), piece | {"state_BHCE": state}, reset_BT[:, part])
        pieces.append(o)
    assert_close((jnp.concatenate(pieces, axis=1), state), forward(gated_linear_reference, a, reset_BT), RMS)


@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("kind", ["none", "scalar"])
def test_products_of_q_and_k_are_computed_once_a_group(kind, bonus):
    T, chunk, H = 64, 16, 4
    run = functools.partial(call, functools.partial(gated_linear, chunk=chunk, recompute=False))
    one, two, four = (flops(run, arrays(T, kind, H=H, G=G, bonus=bonus))["matmul"] for G in (1, 2, 4))
    pairs = 2 * B * T * chunk * C
    assert (four - two, two - one) == (2 * pairs, pairs)


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


def in_half(G, kind, T=37):
    """Four heads' arrays as bfloat16 q, k and v."""
    a = arrays(T, kind, H=4, G=G)
    return a | {name: a[name].astype(jnp.bfloat16) for name in "qkv"}


def compare_in_half(a, reset_BT=None):
    """The form for matrix units in bfloat16, on this machine, against the reference in float32 on the same rounded numbers."""
    weights = arrays(a["q"].shape[1], "none", seed=1, H=4)
    with lowering_for("tpu"):
        fast = values_and_gradients(fast_form(16), a, reset_BT, weights)
    assert fast["o"].dtype == jnp.bfloat16
    wide = {name: x.astype(jnp.float32) for name, x in a.items()}
    slow = values_and_gradients(gated_linear_reference, wide, reset_BT, weights)
    gradient, expected = fast.pop("gradient"), slow.pop("gradient")
    assert_close(fast, slow, 5e-3)
    assert_close(gradient, expected, 2e-2)


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of 16, so that a short text has some and ends within one."""
    monkeypatch.setattr("jaxeff.ops.gated_linear.UNIT", 16)
    jax.clear_caches()


@pytest.mark.parametrize("G", [1, 2, 4])
@pytest.mark.parametrize("kind", ["none", "scalar"])
def test_in_half_is_the_reference(kind, G, short_chunks):
    a = in_half(G, kind)
    compare_in_half(a)
    compare_in_half(a, resets_at(37, 0, 9, 15, 16, 20, 36))


@pytest.mark.parametrize("log_a", [-1e-3, -59.0, -1e30, -jnp.inf])
def test_in_half_with_weak_strong_and_zero_gates(log_a, short_chunks):
    a = in_half(2, "scalar")
    compare_in_half(a | {"log_a": a["log_a"].at[:, 5:20:3].set(log_a)}, resets_at(37, 9))


def test_in_half_over_whole_chunks_of_strong_gates():
    # Sums reach 128 x 30, beside which the last gate is to keep its digits.
    a = in_half(1, "scalar", T=200)
    compare_in_half(a | {"log_a": jnp.where(jnp.arange(200)[None, :, None] % 16 < 15, -30.0, a["log_a"])})


def test_in_half_only_away_from_cpus_for_16_bit_and_one_gate_a_head(monkeypatch):
    calls = []

    def spy(*args, form=_by_sums, **options):
        calls.append(1)
        return form(*args, **options)

    monkeypatch.setattr("jaxeff.ops.gated_linear._by_sums", spy)
    half, vector = in_half(2, "scalar"), arrays(37, "vector", H=4)
    for name, a, expected in [
        ("tpu", half, 1),
        ("gpu", half, 1),
        ("cpu", half, 0),
        ("tpu", arrays(37, "scalar", H=4), 0),
        ("tpu", vector | {name: vector[name].astype(jnp.bfloat16) for name in "qkv"}, 0),
        ("tpu", half | {"bonus_HC": jnp.ones((4, C))}, 0),
    ]:
        calls.clear()
        with lowering_for(name):
            jax.eval_shape(lambda a: call(gated_linear, a), a)
        assert len(calls) == expected


def test_nothing_but_the_arguments_is_kept_for_the_backward_pass():
    a = arrays(256, "vector")
    kept = jax.tree.leaves(jax.eval_shape(lambda a: jax.vjp(lambda a: call(gated_linear, a), a)[1], a))
    # A state per token would be 256 H C E numbers more, one per chunk 4 H C E.
    assert sum(x.size for x in kept) == sum(x.size for x in a.values())


@pytest.mark.shipped
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
        (dict(bonus_HC=jnp.zeros((C, H))), r"bonus has shape \(6, 2\), expected \(2, 6\)"),
        (dict(reset_BT=jnp.zeros((3, B), bool)), r"reset has shape \(3, 2\), expected \(2, 3\)"),
        (dict(q_BTGC=jnp.zeros((B, 3, C))), r"q has shape \(2, 3, 6\), expected \[batch, time, heads, channels\]"),
        (dict(k_BTGC=jnp.zeros((B, 3, 1, C))), r"k has shape \(2, 3, 1, 6\), expected \(2, 3, 2, 6\)"),
        (dict(v_BTHE=jnp.zeros((B, 3, 3, E))), r"v has shape \(2, 3, 3, 5\), expected a multiple of the 2 heads"),
        (dict(v_BTHE=jnp.zeros((B, 4, H, E))), r"v has shape \(2, 4, 2, 5\), expected \(2, 3, 2, 5\)"),
        (dict(state_BHCE=jnp.zeros((B, H, E, C))), r"state has shape \(2, 2, 5, 6\), expected \(2, 2, 6, 5\)"),
    ],
)
def test_impossible_arguments_say_which(change, message):
    a = arrays(3, "none")
    with pytest.raises(ValueError, match=message):
        gated_linear(**dict(q_BTGC=a["q"], k_BTGC=a["k"], v_BTHE=a["v"]) | change)
