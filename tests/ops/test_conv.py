"""The shifted form against the scan: output, final taps and every gradient, at every padding and every set of starts."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.target import lowering_for
from jaxeff.ops.conv import causal_conv, causal_conv_reference, token_shift, token_shift_reference
from tests.closeness import assert_close

D = 3
# Sums of W products are exact to 1e-7; the gradient of w sums over the tokens of some thousand rows.
RMS = 2e-6
# Whether each of bias, taps, valid and start is given.
OPTIONS = list(itertools.product([False, True], repeat=4))


@functools.cache
def masks(T):
    """(valid_BT, start_BT): every padding, up to the whole row, with every set of starts; for T > 7 a draw of them."""
    if T > 7:
        r = np.random.default_rng(T)
        ends = np.sort(r.integers(0, T + 1, (64, 2)), axis=1)
        ends[:3] = [[0, T], [0, 0], [T - 1, T]]
        starts = r.uniform(size=(64, T)) < r.choice([0.05, 0.3, 0.8], (64, 1))
    else:
        pads = [(left, right) for left in range(T + 1) for right in range(left, T + 1)]
        both = list(itertools.product(pads, itertools.product([False, True], repeat=T)))
        ends, starts = np.array([b[0] for b in both]), np.array([b[1] for b in both])
    index = np.arange(T)[None]
    return jnp.asarray((ends[:, :1] <= index) & (index < ends[:, 1:])), jnp.asarray(starts)


def arrays(T, W, B, seed=0):
    r = np.random.default_rng(seed)
    shapes = dict(x_BTD=(B, T, D), w_WD=(W, D), bias_D=(D,), taps_BWD=(B, W - 1, D))
    return {name: jnp.asarray(r.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}


def cotangents(T, W, B):
    """Weights of the two results in a scalar, to be differentiated."""
    a = arrays(T, W, B, seed=1)
    return a["x_BTD"], a["taps_BWD"]


@functools.partial(jax.jit, static_argnums=0)
def forward(form, a, m):
    """(y with zeros at padding, where it means nothing; final taps)."""
    y_BTD, taps = form(**a, **m)
    return (jnp.where(m["valid_BT"][:, :, None], y_BTD, 0) if "valid_BT" in m else y_BTD), taps


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(form, a, m, weights):
    def scalar(a):
        out = forward(form, a, m)
        return sum(jnp.sum(o.astype(jnp.float32) * w) for o, w in zip(out, weights)), out

    (_, (y_BTD, taps)), gradients = jax.value_and_grad(scalar, has_aux=True)(a)
    return {"y": y_BTD, "taps": taps, "gradient": gradients}


def compare(a, m):
    T, W = a["x_BTD"].shape[1], a["w_WD"].shape[0]
    weights = cotangents(T, W, a["x_BTD"].shape[0])
    fast = values_and_gradients(causal_conv, a, m, weights)
    assert_close(fast, values_and_gradients(causal_conv_reference, a, m, weights), RMS)
    return fast


@pytest.mark.parametrize("T", [1, 2, 3, 7, 37])
@pytest.mark.parametrize("W", [1, 2, 4])
def test_fast_is_the_reference_at_every_padding_and_start(T, W):
    valid_BT, start_BT = masks(T)
    a = arrays(T, W, len(valid_BT))
    fast = compare(a, dict(valid_BT=valid_BT, start_BT=start_BT))
    idle = ~jnp.any(valid_BT, axis=1)
    assert jnp.array_equal(fast["taps"][idle], a["taps_BWD"][idle])
    assert not jnp.any(jnp.where(valid_BT[:, :, None], 0, fast["gradient"]["x_BTD"]))


@pytest.mark.parametrize("given", OPTIONS)
def test_every_argument_may_be_left_out(given):
    valid_BT, start_BT = masks(3)
    a, m = arrays(3, 4, len(valid_BT)), dict(valid_BT=valid_BT, start_BT=start_BT)
    absent = {name for name, is_given in zip(["bias_D", "taps_BWD", *m], given) if not is_given}
    fast = compare(*({name: x for name, x in part.items() if name not in absent} for part in (a, m)))
    neutral = {name: jnp.zeros_like(x) for name, x in (a | m).items()} | dict(valid_BT=jnp.ones_like(valid_BT))
    a, m = ({name: neutral[name] if name in absent else x for name, x in part.items()} for part in (a, m))
    assert_close((fast["y"], fast["taps"]), forward(causal_conv_reference, a, m), RMS)


@pytest.mark.parametrize("given", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("T", [1, 2, 7])
def test_without_taps_for_a_tpu_with_an_activation_is_the_reference(T, given):
    m = {name: x for name, x, is_given in zip(["valid_BT", "start_BT"], masks(T), given) if is_given}
    a = arrays(T, 4, len(masks(T)[0]))
    del a["taps_BWD"]
    weights = cotangents(T, 4, len(masks(T)[0]))
    silu = jax.nn.silu
    expected = values_and_gradients(functools.partial(causal_conv_reference, activation=silu), a, m, weights)
    for name in ("tpu", "cpu"):
        with lowering_for(name):
            found = values_and_gradients(functools.partial(causal_conv, activation=silu), a, m, weights)
        assert_close(found, expected, RMS)


@pytest.mark.parametrize("given", [(False, False), (True, False), (False, True), (True, True)])
def test_pieces_with_carried_taps_are_the_whole(given):
    T = 7
    a, m = arrays(T, 4, len(masks(T)[0])), dict(zip(["valid_BT", "start_BT"], masks(T)))
    m = {name: x for (name, x), is_given in zip(m.items(), given) if is_given}
    whole = forward(causal_conv, a, m)
    for cuts in ([0, 3, 7], range(T + 1)):
        pieces, taps_BWD = [], a["taps_BWD"]
        for s, e in itertools.pairwise(cuts):
            part = a | dict(x_BTD=a["x_BTD"][:, s:e], taps_BWD=taps_BWD)
            y_BTD, taps_BWD = forward(causal_conv, part, {name: x[:, s:e] for name, x in m.items()})
            pieces.append(y_BTD)
        assert_close(jnp.concatenate(pieces, axis=1), whole[0], RMS)
        assert jnp.array_equal(taps_BWD, whole[1])


@pytest.mark.parametrize("W", [1, 2, 4])
def test_unmasked_is_the_depthwise_convolution_with_weights_in_the_order_of_torch(W):
    # torch.nn.Conv1d(D, D, W, groups=D) has this lax convolution: a cross-correlation, its weight [D, 1, W] is w_WD.T[:, None].
    a = arrays(37, W, 2)
    before = jnp.concatenate([a["taps_BWD"], a["x_BTD"]], axis=1)
    y_BTD = jax.lax.conv_general_dilated(
        before, a["w_WD"].T[:, None], (1,), [(0, 0)], feature_group_count=D, dimension_numbers=("NWC", "OIW", "NWC")
    )
    fast, taps = forward(causal_conv, a, {})
    assert_close(fast, y_BTD + a["bias_D"][None, None], RMS)
    assert jnp.array_equal(taps, before[:, before.shape[1] - W + 1 :])


def test_a_token_sees_the_valid_tokens_of_its_text_within_the_width_and_no_others():
    T, W = 7, 3
    w_WD, taps_BWD = jnp.ones((W, 1)), jnp.ones((1, W - 1, 1))

    def results(x_T, taps_BWD, valid_T, start_T):
        y_BTD, taps = causal_conv(x_T[None, :, None], w_WD, None, taps_BWD, valid_T[None], start_T[None])
        return y_BTD[0, :, 0], taps[0, :, 0]

    jacobian = jax.jit(jax.vmap(jax.jacrev(results, argnums=(0, 1)), in_axes=(None, None, 0, 0)))
    valid_BT, start_BT = masks(T)
    (y_x, y_taps), (taps_x, taps_taps) = jax.tree.map(np.asarray, jacobian(jnp.ones(T), taps_BWD, valid_BT, start_BT))

    # Places of taps and tokens in a row: carried taps are the places before the first valid token, of text 0.
    valid_BT, start_BT = np.asarray(valid_BT), np.asarray(start_BT)
    place_BT = np.cumsum(valid_BT, axis=1) + W - 2
    text_BT = np.cumsum(valid_BT & start_BT, axis=1)
    taken_B, current_B = place_BT[:, -1:], text_BT[:, -1:]
    apart = place_BT[:, :, None] - place_BT[:, None]
    sees = (apart >= 0) & (apart < W) & (text_BT[:, :, None] == text_BT[:, None]) & valid_BT[:, None]
    real = valid_BT[:, :, None]
    assert np.array_equal((y_x != 0) & real, sees & real)
    sees = (place_BT[:, :, None] - np.arange(W - 1)[None, None] < W) & (text_BT[:, :, None] == 0)
    assert np.array_equal((y_taps[:, :, 0, :, 0] != 0) & real, sees & real)
    end = taken_B - np.arange(W - 1)[None, ::-1]
    sees = (end[:, :, None] == place_BT[:, None]) & valid_BT[:, None] & (text_BT == current_B)[:, None]
    assert np.array_equal(taps_x != 0, sees)
    sees = (end[:, :, None] == np.arange(W - 1)[None, None]) & (current_B == 0)[:, :, None]
    assert np.array_equal(taps_taps[:, :, 0, :, 0] != 0, sees)


def test_what_stands_at_padding_enters_nothing_not_even_nan():
    T, W = 7, 4
    valid_BT, start_BT = masks(T)
    a, m = arrays(T, W, len(valid_BT)), dict(valid_BT=valid_BT, start_BT=start_BT)
    weights = cotangents(T, W, len(valid_BT))
    nan = a | dict(x_BTD=jnp.where(valid_BT[:, :, None], a["x_BTD"], jnp.nan))
    expected = values_and_gradients(causal_conv, a, m, weights)
    found = values_and_gradients(causal_conv, nan, m, weights)
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, found, expected)))
    assert jnp.all(jnp.isfinite(causal_conv(**nan, **m)[0]))


def test_a_padded_row_is_the_row_without_its_padding():
    a = arrays(7, 4, 1)
    y_BTD, taps = causal_conv(**a)
    for left, right in [(0, 1), (1, 0), (2, 5), (9, 4)]:
        ends = ((0, 0), (left, right))
        padded = a | dict(x_BTD=jnp.pad(a["x_BTD"], (*ends, (0, 0)), constant_values=3.0))
        y_padded, taps_padded = causal_conv(**padded, valid_BT=jnp.pad(jnp.ones((1, 7), bool), ends))
        assert_close((y_padded[:, left : left + 7], taps_padded), (y_BTD, taps), RMS)


@pytest.mark.parametrize("T", [1, 3, 7])
@pytest.mark.parametrize("masked", [False, True])
def test_token_shift_is_the_convolution_of_weights_one_and_zero(T, masked):
    valid_BT, start_BT = masks(T)
    m = dict(valid_BT=valid_BT, start_BT=start_BT) if masked else {}
    a = arrays(T, 2, len(valid_BT))
    x_BTD, last_BD = a["x_BTD"], a["taps_BWD"][:, 0]

    def conv(x_BTD, last_BD, **m):
        y_BTD, taps_BWD = causal_conv(x_BTD, jnp.eye(2, 1) * jnp.ones((1, D)), None, last_BD[:, None], **m)
        return y_BTD, taps_BWD[:, 0]

    @functools.partial(jax.jit, static_argnums=0)
    def run(form, x_BTD, last_BD):
        (y_BTD, last), pull = jax.vjp(functools.partial(form, **m), x_BTD, last_BD)
        real = jnp.ones_like(valid_BT) if not masked else valid_BT
        weights = cotangents(T, 2, len(valid_BT))
        pulled = pull((jnp.where(real[:, :, None], weights[0], 0), weights[1][:, 0]))
        return jnp.where(real[:, :, None], y_BTD, 0), last, pulled

    expected = run(conv, x_BTD, last_BD)
    for form in (token_shift, token_shift_reference):
        # Copies, times one and plus zero: to the last digit.
        assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, run(form, x_BTD, last_BD), expected)))


def test_token_shift_without_a_last_token_begins_with_zeros():
    x_BTD = arrays(3, 2, 2)["x_BTD"]
    before_BTD, last_BD = token_shift(x_BTD)
    assert jnp.array_equal(before_BTD, jnp.pad(x_BTD, ((0, 0), (1, 0), (0, 0)))[:, :-1])
    assert jnp.array_equal(last_BD, x_BTD[:, -1])


def test_bfloat16_in_and_out_with_float32_inside():
    valid_BT, start_BT = masks(37)
    a, m = arrays(37, 4, len(valid_BT)), dict(valid_BT=valid_BT, start_BT=start_BT)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), a)
    weights = cotangents(37, 4, len(valid_BT))
    found = values_and_gradients(causal_conv, low, m, weights)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
    exact = values_and_gradients(causal_conv, jax.tree.map(lambda x: x.astype(jnp.float32), low), m, weights)
    # Cotangents are rounded on their way in too.
    assert_close(found, exact, 1e-2)
    mixed = low | {name: low[name].astype(jnp.float32) for name in ("w_WD", "bias_D", "taps_BWD")}
    y_BTD, taps = forward(causal_conv, mixed, m)
    assert y_BTD.dtype == taps.dtype == jnp.bfloat16
    assert jnp.array_equal(y_BTD, found["y"]) and jnp.array_equal(taps, found["taps"])


@pytest.mark.parametrize("masked", [False, True])
def test_nothing_but_the_arguments_is_kept_for_the_backward_pass(masked):
    a = arrays(64, 4, 2)
    m = dict(valid_BT=jnp.ones((2, 64), bool), start_BT=jnp.zeros((2, 64), bool)) if masked else {}
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    kept = jax.eval_shape(lambda a, m: jax.vjp(lambda a: causal_conv(**a, **m), a)[1], a, m)
    assert size(kept) <= size((a, m))
    shifted = jax.eval_shape(lambda x, m: jax.vjp(lambda x: token_shift(x, **m), x)[1], a["x_BTD"], m)
    assert size(shifted) <= size(m)


def test_reference_by_name():
    a = arrays(3, 2, 1)
    assert_close(causal_conv(**a, impl="reference"), causal_conv(**a), RMS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x_BTD=jnp.zeros((2, D))), r"causal_conv: x has shape \(2, 3\), expected \(B, T, D\)"),
        (dict(w_WD=jnp.zeros((D, 4))), r"w has shape \(3, 4\), expected \(W, 3\) with W at least 1"),
        (dict(w_WD=jnp.zeros((0, D))), r"w has shape \(0, 3\), expected \(W, 3\) with W at least 1"),
        (dict(bias_D=jnp.zeros(1)), r"bias has shape \(1,\), expected \(3,\)"),
        (dict(taps_BWD=jnp.zeros((2, 4, D))), r"taps has shape \(2, 4, 3\), expected \(2, 3, 3\)"),
        (dict(valid_BT=jnp.ones((2, 4), bool)), r"valid has shape \(2, 4\), expected \(2, 5\)"),
        (dict(start_BT=jnp.ones((1, 5), bool)), r"start has shape \(1, 5\), expected \(2, 5\)"),
        (dict(impl="shfit"), "no form of causal_conv is called 'shfit'; did you mean 'shift'"),
    ],
)
def test_impossible_arguments_say_which(change, message):
    with pytest.raises(ValueError, match=message):
        causal_conv(**arrays(5, 4, 2) | change)


def test_impossible_arguments_of_token_shift_say_which():
    with pytest.raises(ValueError, match=r"token_shift: last has shape \(2, 1, 3\), expected \(2, 3\)"):
        token_shift(jnp.zeros((2, 5, D)), jnp.zeros((2, 1, D)))
