"""The short causal depthwise convolution of Mamba and Gated DeltaNet, and the token shift of RWKV.

    y_t = bias + sum_i w_{W-1-i} x_{t-i}        i = 0 .. W-1, W is 2 to 4 in practice

B batch, T time, D channels, W width, on taps one less; S = W - 1 + T.

Both look back at a few inputs and carry these from call to call: the *taps*, the last W - 1 valid inputs of a row, oldest
first, zeros where there were none. Here the taps are written directly before each row's first valid token, so that x_{t-i}
is the same slice for every row, padded or not: W shifted multiply-adds, and nothing of size [B, T, W, D].

Padding (`valid_BT` False) stands at the ends of a row, never between its valid tokens, and enters nothing: a row of only
padding returns its taps. A token that starts a text (`start_BT` True) sees no tap of the text before, nor does any after it.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxeff.core import sequence
from jaxeff.core.errors import lookup
from jaxeff.core.sharding import RULES, Rules
from jaxeff.core.target import platform


def causal_conv(
    x_BTD: jax.Array,
    w_WD: jax.Array,
    bias_D: jax.Array | None = None,
    taps_BWD: jax.Array | None = None,
    valid_BT: jax.Array | None = None,
    start_BT: jax.Array | None = None,
    *,
    activation: Callable[[jax.Array], jax.Array] | None = None,
    impl: str | None = None,
    mesh=None,
    rules: Rules = RULES,
    axis: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(y_BTD, final taps [B, W - 1, D]), both in x's dtype; sums, those of the gradients too, are in float32.

    w[W-1] weighs the current token, the order of torch's Conv1d with padding on the left and of Mamba's weights (Gu and Dao
    2023, "Mamba", section 3.4). taps_BWD: None is zero. valid_BT: None is True throughout. start_BT: None is False
    throughout; a start at padding has no effect. y at padding is finite and means nothing. T = 1 is a step of decoding.
    activation: of y, number by number. impl: "shift" (default) or "reference". For a TPU kernel: mesh, which may cut the batch and
    the channels, rules of its logical axes, and that of the channels.

    Raises ValueError for shapes that disagree.
    """
    given = taps_BWD is not None
    taps_BWD = _check(x_BTD, w_WD, bias_D, taps_BWD, valid_BT, start_BT)
    if lookup(IMPLS, impl or "shift", "form of causal_conv") is causal_conv_reference:
        return causal_conv_reference(x_BTD, w_WD, bias_D, taps_BWD, valid_BT, start_BT, activation=activation)
    # The backward pass needs shifted inputs alone: shifting again is cheaper than keeping W of them, or y, in float32. A CPU has
    # little room for passes that do much: it is quicker with slices of a row that is written out, and with y written out, too.
    in_steps = platform() == "cpu"
    conv = _by_kernel(x_BTD, w_WD, given, valid_BT, activation, mesh=mesh, rules=rules, axis=axis)
    conv = conv or jax.checkpoint(functools.partial(_conv, None if in_steps else activation))
    form = lambda taps_BWD: conv(x_BTD, w_WD, bias_D, taps_BWD, valid_BT, start_BT)  # noqa: E731
    if sequence.sliced():
        y_BTD, taps_BWD = _after_slices(form, x_BTD, taps_BWD, valid_BT, start_BT)
    else:
        y_BTD, taps_BWD = form(taps_BWD if given or in_steps else None)
    if in_steps and activation is not None:
        y_BTD = jax.checkpoint(lambda y: activation(y.astype(jnp.float32)).astype(y.dtype))(y_BTD)
    return y_BTD, taps_BWD


def token_shift(
    x_BTD: jax.Array,
    last_BD: jax.Array | None = None,
    valid_BT: jax.Array | None = None,
    start_BT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(x_{t-1} at every t, the last valid x [B, D]), both in x's dtype: the convolution of weights (1, 0), by copying.

    last_BD: the last valid x before this call, None is zero: the only tap. Masks are as for `causal_conv`. Peng et al. 2023,
    "RWKV", section 3.1.

    Raises ValueError for shapes that disagree.
    """
    taps_BWD = _check_shift(x_BTD, last_BD, valid_BT, start_BT)
    # Linear in x, so that nothing is kept but the masks; without the checkpoint, a copy of them for every channel.
    form = lambda taps_BWD: jax.checkpoint(_shift)(x_BTD, taps_BWD, valid_BT, start_BT)  # noqa: E731
    after = _after_slices(form, x_BTD, taps_BWD, valid_BT, start_BT) if sequence.sliced() else form(taps_BWD)
    before_BTD, taps_BWD = after
    return before_BTD, taps_BWD[:, 0]


def causal_conv_reference(x_BTD, w_WD, bias_D=None, taps_BWD=None, valid_BT=None, start_BT=None, *, activation=None):
    """A scan over tokens that carries the taps; arguments and results as for `causal_conv`."""
    taps_BWD = _check(x_BTD, w_WD, bias_D, taps_BWD, valid_BT, start_BT)
    valid_BT = jnp.ones(x_BTD.shape[:2], bool) if valid_BT is None else valid_BT
    start_BT = jnp.zeros(x_BTD.shape[:2], bool) if start_BT is None else start_BT

    def step(taps_BWD, token):
        x_BD, valid_B, start_B = token
        x_BD = jnp.where(valid_B[:, None], x_BD, 0)
        seen_BWD = jnp.where((valid_B & start_B)[:, None, None], 0, taps_BWD)
        seen_BWD = jnp.concatenate([seen_BWD, x_BD[:, None]], axis=1)
        y_BD = jnp.einsum("bwd,wd->bd", seen_BWD.astype(jnp.float32), w_WD.astype(jnp.float32))
        return jnp.where(valid_B[:, None, None], seen_BWD[:, 1:], taps_BWD), y_BD

    taps_BWD, y_TBD = jax.lax.scan(step, taps_BWD, [jnp.moveaxis(a, 1, 0) for a in (x_BTD, valid_BT, start_BT)])
    return _activated(_biased(jnp.moveaxis(y_TBD, 0, 1), bias_D), activation).astype(x_BTD.dtype), taps_BWD


def token_shift_reference(x_BTD, last_BD=None, valid_BT=None, start_BT=None):
    """The convolution of weights (1, 0) as a scan; arguments and results as for `token_shift`."""
    taps_BWD = _check_shift(x_BTD, last_BD, valid_BT, start_BT)
    w_WD = jnp.zeros((2, x_BTD.shape[2]), x_BTD.dtype).at[0].set(1)
    before_BTD, taps_BWD = causal_conv_reference(x_BTD, w_WD, None, taps_BWD, valid_BT, start_BT)
    return before_BTD, taps_BWD[:, 0]


def _check(x_BTD, w_WD, bias_D, taps_BWD, valid_BT, start_BT):
    """The taps in x's dtype, zero if None."""
    B, T, D = _sizes("causal_conv", x_BTD)
    if w_WD.ndim != 2 or w_WD.shape[0] < 1 or w_WD.shape[1] != D:
        raise ValueError(f"causal_conv: w has shape {w_WD.shape}, expected (W, {D}) with W at least 1")
    shape = (B, w_WD.shape[0] - 1, D)
    _agree(
        "causal_conv", bias=(bias_D, (D,)), taps=(taps_BWD, shape), valid=(valid_BT, (B, T)), start=(start_BT, (B, T))
    )
    return jnp.zeros(shape, x_BTD.dtype) if taps_BWD is None else taps_BWD.astype(x_BTD.dtype)


def _check_shift(x_BTD, last_BD, valid_BT, start_BT):
    """The one tap [B, 1, D] in x's dtype, zero if None."""
    B, T, D = _sizes("token_shift", x_BTD)
    _agree("token_shift", last=(last_BD, (B, D)), valid=(valid_BT, (B, T)), start=(start_BT, (B, T)))
    return jnp.zeros((B, 1, D), x_BTD.dtype) if last_BD is None else last_BD.astype(x_BTD.dtype)[:, None]


def _sizes(op: str, x_BTD):
    """(B, T, D)."""
    if x_BTD.ndim != 3 or x_BTD.shape[1] < 1:
        raise ValueError(f"{op}: x has shape {x_BTD.shape}, expected (B, T, D) with T at least 1")
    return x_BTD.shape


def _agree(op: str, **expected):
    """Every array that is given has its shape."""
    for name, (a, shape) in expected.items():
        if a is not None and a.shape != shape:
            raise ValueError(f"{op}: {name} has shape {a.shape}, expected {shape}")


def _conv(activation, x_BTD, w_WD, bias_D, taps_BWD, valid_BT, start_BT):
    """The equation at the head of this file."""
    row_BSD, text_BS = _row(x_BTD, taps_BWD, valid_BT, start_BT)
    # Widened before it is shifted: the gradient of x is then the float32 sum over the shifts, rounded once.
    wide_BSD, w_WD = row_BSD.astype(jnp.float32), w_WD.astype(jnp.float32)
    T, W = x_BTD.shape[1], w_WD.shape[0]
    y_BTD = sum(w_WD[W - 1 - i][None, None] * _back(i, T, wide_BSD, text_BS) for i in range(W))
    y_BTD = _activated(_biased(y_BTD, bias_D), activation)
    return y_BTD.astype(x_BTD.dtype), _last(W - 1, T, row_BSD, text_BS, valid_BT)


def _by_kernel(x_BTD, w_WD, given: bool, valid_BT, activation, **spread):
    """`_conv` by a kernel, None where there is none. Its taps enter before the first token, be it padding or not. spread: mesh,
    rules and axis."""
    if platform() != "tpu" or (valid_BT is not None and (given or sequence.sliced())):
        return None
    from jaxeff.ops.pallas import conv as kernel

    if kernel.why_not(x_BTD, w_WD, activation, **spread) is not None:
        return None

    def conv(x_BTD, w_WD, bias_D, taps_BWD, valid_BT, start_BT):
        W, T = w_WD.shape[0], x_BTD.shape[1]
        seen_BT = _seen(W, valid_BT, start_BT)
        arrays = (x_BTD, w_WD, bias_D, taps_BWD, seen_BT)
        y_BTD = kernel.on_each_device(*arrays, silu=activation is not None, **spread)
        return y_BTD, _last(W - 1, T, *_row(x_BTD, None, valid_BT, start_BT), valid_BT)

    return conv


def _seen(W: int, valid_BT, start_BT):
    """How many tokens back each token sees, at most W - 1, -1 at padding; None where all see all. Before the first, all are seen if
    there is no padding."""
    if valid_BT is None and start_BT is None:
        return None
    seeing = jnp.ones_like(start_BT) if valid_BT is None else valid_BT
    seen_BT = seeing.astype(jnp.int32) - 1
    for i in range(1, W):
        seeing = seeing if start_BT is None else seeing & ~_moved(start_BT, i - 1, 1 - i)
        seeing = seeing if valid_BT is None else seeing & _moved(valid_BT, i, -i)
        seen_BT = seen_BT + seeing.astype(jnp.int32)
    return seen_BT


def _shift(x_BTD, taps_BWD, valid_BT, start_BT):
    """(x one token back, final taps)."""
    row_BSD, text_BS = _row(x_BTD, taps_BWD, valid_BT, start_BT)
    T = x_BTD.shape[1]
    return _back(1, T, row_BSD, text_BS), _last(1, T, row_BSD, text_BS, valid_BT)


def _after_slices(form, x_BTD, taps_BWD, valid_BT, start_BT):
    """`form` of the taps that the slices before this one leave, and the taps after the last slice; see `core.sequence`.

    A slice with n valid tokens moves n places of the taps out, all of them where a text starts in it.
    """
    batch, time, _ = x_BTD.shape
    places = taps_BWD.shape[1]
    n_B = jnp.full((batch,), time, jnp.int32) if valid_BT is None else jnp.sum(valid_BT, axis=1, dtype=jnp.int32)
    if start_BT is not None:
        n_B = jnp.where(jnp.any(start_BT if valid_BT is None else start_BT & valid_BT, axis=1), places, n_B)
    none_B = jnp.zeros_like(n_B)

    def join(earlier, later):
        (taps, n), (more, m) = earlier, later
        both = jnp.concatenate([taps, jnp.zeros_like(taps)], axis=1)
        moved = jax.vmap(lambda row, by: jax.lax.dynamic_slice_in_dim(row, by, places))(both, jnp.minimum(m, places))
        return moved + more, jnp.minimum(n + m, places)

    own = (form(jnp.zeros_like(taps_BWD))[1], jnp.minimum(n_B, places))
    earlier = sequence.before(own, join, (jnp.zeros_like(taps_BWD), none_B))
    y_BTD, taps_BWD = form(join((taps_BWD, none_B), earlier)[0])
    return y_BTD, sequence.last(taps_BWD)


def _row(x_BTD, taps_BWD, valid_BT, start_BT):
    """(row_BSD: x after W - 1 places, the taps directly before the first valid token; text_BS: which text each belongs to).

    Texts are numbered by the starts up to each place, 0 for the taps; None if nothing starts. Without taps the row is x alone.
    """
    before = 0 if taps_BWD is None else taps_BWD.shape[1]
    if start_BT is not None:
        start_BT = start_BT if valid_BT is None else start_BT & valid_BT
        start_BT = jnp.pad(jnp.cumsum(start_BT, axis=1), ((0, 0), (before, 0)))
    x_BTD = x_BTD if valid_BT is None else jnp.where(valid_BT[:, :, None], x_BTD, 0)
    if taps_BWD is None:
        return x_BTD, start_BT
    if valid_BT is None:
        return jnp.concatenate([taps_BWD, x_BTD], axis=1), start_BT
    row_BSD = jnp.pad(x_BTD, ((0, 0), (before, 0), (0, 0)))
    write = jax.vmap(lambda row_SD, taps_WD, first: jax.lax.dynamic_update_slice_in_dim(row_SD, taps_WD, first, 0))
    return write(row_BSD, taps_BWD, jnp.argmax(valid_BT, axis=1)), start_BT


def _moved(x, first: int, last: int):
    """x with `first` zeros more in front along time, and `last` at its end, where a negative number takes places off."""
    if first <= 0 and last <= 0:
        return x[:, -first : x.shape[1] + last]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (first, last, 0)) + ((0, 0, 0),) * (x.ndim - 2))


def _back(i: int, T: int, row_BSD, text_BS):
    """x_{t-i} at every t, zero where it belongs to an earlier text or there is none."""
    before = row_BSD.shape[1] - T
    past_BTD = _moved(row_BSD, i - before, -i)
    if text_BS is None:
        return past_BTD
    return jnp.where((_moved(text_BS, i - before, -i) == text_BS[:, -T:])[:, :, None], past_BTD, 0)


def _last(taps: int, T: int, row_BSD, text_BS, valid_BT):
    """The final taps: the W - 1 places that end at the last valid token, zero where they belong to an earlier text."""
    more = taps - (row_BSD.shape[1] - T)  # places in front that the row has not
    if valid_BT is None:
        read = lambda row: _moved(row, more - T, 0)
    else:
        # In a row of only padding argmax is 0: the taps were written at its very start, and no token follows.
        after_B = jnp.argmax(valid_BT, axis=1) + jnp.sum(valid_BT, axis=1)
        cut = jax.vmap(lambda r, s: jax.lax.dynamic_slice_in_dim(r, s, taps, 0))
        read = lambda row: cut(_moved(row, more, 0), after_B)
    if text_BS is None:
        return read(row_BSD)
    return jnp.where((read(text_BS) == text_BS[:, -1:])[:, :, None], read(row_BSD), 0)


def _biased(y_BTD, bias_D):
    return y_BTD if bias_D is None else y_BTD + bias_D.astype(jnp.float32)[None, None]


def _activated(y_BTD, activation):
    return y_BTD if activation is None else activation(y_BTD)


IMPLS = {"shift": causal_conv, "reference": causal_conv_reference}
