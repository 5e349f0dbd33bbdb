"""The fast forms against the reference scan, and that against its equations: output, final state and every gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.ops.wkv import EMPTY, WKVState, empty_wkv, wkv, wkv_reference
from tests.closeness import assert_close

B, D = 2, 6
# Exponents as large as 60 are rounded to 4e-6, and decays over some tokens likewise; gradients add up over a hundred tokens.
RMS = 5e-6


def arrays(T, seed=0, scale=1.0, decay=0.3):
    """k of size `scale`, v, log decay around `decay`, u and a state that is not empty."""
    r = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(r.standard_normal(shape), jnp.float32)
    state = WKVState(normal(B, D), normal(B, D), 1 + jnp.abs(normal(B, D)))
    log_decay_D = -decay * jnp.asarray(r.uniform(0.5, 1.5, D), jnp.float32)
    return {
        "k": scale * normal(B, T, D),
        "v": normal(B, T, D),
        "log_decay": log_decay_D,
        "bonus": normal(D),
        "state": state,
    }


def call(form, a, reset_BT=None, valid_BT=None, **options):
    return form(a["k"], a["v"], a["log_decay"], a["bonus"], a["state"], reset_BT, valid_BT, **options)


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(form, a, reset_BT, valid_BT, weights):
    """(y at valid tokens, state), and the gradients of a random weighting of both with respect to every array."""

    def scalar(a):
        y, state = call(form, a, reset_BT, valid_BT)
        y = y if valid_BT is None else jnp.where(valid_BT[..., None], y, 0.0)
        products = jax.tree.map(lambda x, w: jnp.sum(x * w), (y, state), (weights["v"], weights["state"]))
        return sum(jax.tree.leaves(products)), (y, state)

    (_, out), gradients = jax.value_and_grad(scalar, has_aux=True)(a)
    return {"y": out[0], "state": out[1], "gradient": gradients}


@functools.partial(jax.jit, static_argnums=0)
def forward(form, a, reset_BT=None, valid_BT=None):
    """(y, state)."""
    return call(form, a, reset_BT, valid_BT)


@functools.cache
def fast_form(impl):
    return functools.partial(wkv, impl=impl, chunk=4)


def compare(a, reset_BT=None, valid_BT=None, impl="chunk", rms=RMS):
    weights = arrays(a["k"].shape[1], seed=1)
    fast = values_and_gradients(fast_form(impl), a, reset_BT, valid_BT, weights)
    assert_close(fast, values_and_gradients(wkv_reference, a, reset_BT, valid_BT, weights), rms)
    return fast


def masks(T):
    """Resets at chunks' ends, inside of them and at padding; padding at both ends, a whole row of it in the last one."""
    r = np.random.default_rng(2)
    valid = np.ones((B, T), bool)
    valid[0, : T // 3], valid[1, -(T // 4) :] = False, False
    return jnp.asarray(r.uniform(size=(B, T)) < 0.1), jnp.asarray(valid)


def loop(a, reset_BT=None, valid_BT=None):
    """The equations in float64, without any maximum: (y, num e^top, den e^top)."""
    k, v, log_decay, u = (np.asarray(a[n], np.float64) for n in ("k", "v", "log_decay", "bonus"))
    top, num, den = (np.asarray(x, np.float64) for x in a["state"])
    num, den, y = num * np.exp(top), den * np.exp(top), np.zeros_like(v)
    for b, t in np.ndindex(*k.shape[:2]):
        if valid_BT is not None and not valid_BT[b, t]:
            continue
        if reset_BT is not None and reset_BT[b, t]:
            num[b], den[b] = 0, 0
        here = np.exp(u + k[b, t])
        y[b, t] = (num[b] + here * v[b, t]) / (den[b] + here)
        num[b] = np.exp(log_decay) * num[b] + np.exp(k[b, t]) * v[b, t]
        den[b] = np.exp(log_decay) * den[b] + np.exp(k[b, t])
    return y, num, den


@pytest.mark.parametrize("form", [wkv_reference, fast_form("chunk"), fast_form("scan")])
def test_both_forms_are_the_equations(form):
    a, (reset_BT, valid_BT) = arrays(37), masks(37)
    for reset, valid in ((None, None), (reset_BT, valid_BT)):
        y, (top, num, den) = forward(form, a, reset, valid)
        y = y if valid is None else jnp.where(valid[..., None], y, 0.0)
        assert_close((y, num * jnp.exp(top), den * jnp.exp(top)), loop(a, reset, valid), RMS)


# Blocks are of 16 chunks: at a chunk of 4, 37 tokens are one and 149 are three blocks.
@pytest.mark.parametrize(("T", "impl"), [(2, "chunk"), (3, "scan"), (37, "chunk"), (37, "scan"), (149, "chunk")])
def test_fast_is_the_reference_at_any_length(T, impl):
    compare(arrays(T), impl=impl)


def test_one_token_is_the_reference():
    a, weights = arrays(1), arrays(1, seed=1)
    for reset, valid in ((None, None), (jnp.asarray([[True], [False]]), jnp.asarray([[True], [False]]))):
        fast = values_and_gradients(wkv, a, reset, valid, weights)
        assert_close(fast, values_and_gradients(wkv_reference, a, reset, valid, weights), RMS)


@pytest.mark.parametrize("decay", [0.0, 1e-4, 20.0, 1e35])
def test_fast_is_the_reference_for_every_decay(decay):
    fast = compare(arrays(37, decay=decay))
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(fast))


@pytest.mark.parametrize(("T", "impl"), [(37, "chunk"), (37, "scan"), (149, "chunk")])
def test_resets_and_padding_are_the_reference(T, impl):
    reset_BT, valid_BT = masks(T)
    compare(arrays(T), reset_BT, valid_BT, impl)
    if (T, impl) == (37, "chunk"):
        compare(arrays(T), None, valid_BT)


@pytest.mark.parametrize("size", ["large", "falling", "rising"])
def test_keys_of_any_size(size):
    """+-60 in one text, and past or future that has no weight left."""
    a = arrays(37, scale=30.0)
    line = jnp.linspace(-60, 60, 37)[None, :, None] + 0.1 * a["k"]
    a |= {"k": {"large": jnp.clip(a["k"], -60, 60), "rising": line, "falling": -line}[size]}
    fast = compare(a, rms=2e-5)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(fast))


def test_far_too_large_keys_stay_finite():
    a = arrays(149, scale=1e4)
    fast = values_and_gradients(fast_form("chunk"), a, None, None, arrays(149, seed=1))
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(fast))


def plain(k, v, log_decay, bonus, state):
    """The equations without any maximum: (y, (num e^top, den e^top))."""
    decay_BD, u_BD = jnp.exp(log_decay)[None], bonus[None]

    def step(sums, token):
        (num, den), (k, v) = sums, token
        here, e = jnp.exp(u_BD + k), jnp.exp(k)
        return (decay_BD * num + e * v, decay_BD * den + e), (num + here * v) / (den + here)

    scale = jnp.exp(state.top)
    sums, y = jax.lax.scan(step, (scale * state.num, scale * state.den), (jnp.moveaxis(k, 1, 0), jnp.moveaxis(v, 1, 0)))
    return jnp.moveaxis(y, 0, 1), sums


@pytest.mark.parametrize("form", [wkv_reference, fast_form("chunk"), fast_form("scan")])
def test_gradients_of_what_a_state_stands_for(form):
    """A top that is constant in the gradient changes none of num e^top and den e^top."""
    a, w = arrays(37), arrays(37, seed=1)

    def sums(*args):
        y, (top, num, den) = form(*args)
        return y, (num * jnp.exp(top), den * jnp.exp(top))

    def gradients(run):
        scalar = lambda *args: sum(
            jnp.sum(x * w) for x, w in zip(jax.tree.leaves(run(*args)), (w["v"], *w["state"][1:]), strict=True)
        )
        return jax.jit(jax.grad(scalar, argnums=(0, 1, 2, 3, 4)))(*a.values())

    assert_close(gradients(sums), gradients(plain), RMS)


def test_an_empty_state_is_no_state():
    a = arrays(37) | {"state": None}
    y, state = forward(fast_form("chunk"), a)
    assert_close((y, state), forward(fast_form("chunk"), a | {"state": empty_wkv(B, D)}), 0)
    assert float(empty_wkv(1, 1).top[0, 0]) == np.float32(EMPTY)
    # The first token is all there is to average.
    assert_close(y[:, 0], a["v"][:, 0], RMS)


def test_a_reset_cuts_the_past_off():
    a = arrays(11)
    for t in (0, 3, 4, 10):
        reset_BT = jnp.zeros((B, 11), bool).at[:, t].set(True)
        later = {n: x[:, t:] if n in "kv" else x for n, x in a.items()} | {"state": None}
        y, state = forward(fast_form("chunk"), a, reset_BT)
        assert_close((y[:, t:], state), forward(wkv_reference, later), RMS)


def test_padding_leaves_the_state_as_it_was():
    a, none = arrays(37), jnp.zeros((B, 37), bool)
    for state in (a["state"], empty_wkv(B, D)):
        _, after = forward(fast_form("chunk"), a | {"state": state}, ~none, none)
        assert all(jnp.array_equal(x, y) for x, y in zip(after, state, strict=True))


def test_carried_state_is_the_whole():
    a, (reset_BT, valid_BT) = arrays(37), masks(37)
    pieces, state = [], a["state"]
    for part in (slice(0, 1), slice(1, 20), slice(20, 21), slice(21, 37)):
        piece = {n: x[:, part] if n in "kv" else x for n, x in a.items()} | {"state": state}
        y, state = forward(fast_form("chunk"), piece, reset_BT[:, part], valid_BT[:, part])
        pieces.append(y)
    y, expected = forward(wkv_reference, a, reset_BT, valid_BT)
    valid = valid_BT[..., None]
    found = (jnp.where(valid, jnp.concatenate(pieces, axis=1), 0.0), state)
    assert_close(found, (jnp.where(valid, y, 0.0), expected), RMS)


def test_bfloat16_in_and_out_with_float32_inside():
    a = arrays(37)
    low = a | {n: a[n].astype(jnp.bfloat16) for n in "kv"}
    y, state = forward(fast_form("chunk"), low)
    assert y.dtype == jnp.bfloat16 and all(x.dtype == jnp.float32 for x in state)
    exact = forward(wkv_reference, low | {n: low[n].astype(jnp.float32) for n in "kv"})
    assert_close(state, exact[1], RMS)
    assert_close(y, exact[0], 2**-8, "one rounding to 8 bits")


@pytest.mark.parametrize("impl", ["scan", "chunk"])
def test_nothing_but_the_arguments_is_kept_for_the_backward_pass(impl):
    a = arrays(149)
    kept = jax.tree.leaves(jax.eval_shape(lambda a: jax.vjp(lambda a: call(fast_form(impl), a), a)[1], a))
    # log decay may be kept both as given and as bounded. A state per token would be 3 B T D numbers more.
    assert sum(x.size for x in kept) <= sum(x.size for x in jax.tree.leaves(a)) + 2 * D


@pytest.mark.shipped
@pytest.mark.parametrize("impl", ["scan", "chunk"])
def test_no_state_per_token_at_any_time(impl):
    def peak(impl, T):
        x = jax.ShapeDtypeStruct((1, T, 128), jnp.float32)
        d = jax.ShapeDtypeStruct((128,), jnp.float32)
        loss = lambda k, v, w, u: jnp.sum(jnp.sin(wkv(k, v, w, u, impl=impl)[0]))
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(x, x, d, d).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (4 * T * 128)

    fast, reference = peak(impl, 8192), peak("reference", 8192)
    print(f"{fast:.1f} numbers per token and channel, the scan over time {reference:.1f}")
    # Copies of k, v, y and their gradients by blocks; the scan keeps states and exponentials beside.
    assert fast < 8 < 12 < reference


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(chunk=0), "chunk must be at least 1, found 0"),
        (dict(impl="chunked"), "no form of wkv is called 'chunked'; did you mean 'chunk'"),
        (dict(k_BTD=jnp.zeros((3, D))), r"k has shape \(3, 6\), expected \(B, T, D\) with T at least 1"),
        (dict(v_BTD=jnp.zeros((B, 4, D))), r"v has shape \(2, 4, 6\), expected \(2, 3, 6\)"),
        (dict(log_decay_D=jnp.zeros((1, D))), r"log_decay has shape \(1, 6\), expected \(6,\)"),
        (dict(bonus_D=jnp.zeros(5)), r"bonus has shape \(5,\), expected \(6,\)"),
        (dict(reset_BT=jnp.zeros((3, B), bool)), r"reset has shape \(3, 2\), expected \(2, 3\)"),
        (dict(valid_BT=jnp.zeros((3, B), bool)), r"valid has shape \(3, 2\), expected \(2, 3\)"),
        (dict(state=empty_wkv(3, D)), r"top has shape \(3, 6\), expected \(2, 6\)"),
    ],
)
def test_impossible_arguments_say_which(change, message):
    a = arrays(3)
    given = dict(k_BTD=a["k"], v_BTD=a["v"], log_decay_D=a["log_decay"], bonus_D=a["bonus"])
    with pytest.raises(ValueError, match=message):
        wkv(**given | change)
