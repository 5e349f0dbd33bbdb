"""The diagonal recurrence of Griffin and other gated linear RNNs (De et al. 2024, "Griffin", section 2.4; Martin and Cundy 2018).

    h_t = a_t h_{t-1} + x_t,    a_t = exp(log_a_t),  log_a <= 0

B batch, T time, D channels, each by itself; K chunks, I time within a chunk. With l_t the gradient of x_t and m_t that of h_{t-1}
through h_t,

    l_t = dh_t + m_{t+1},    m_t = a_t l_t = a_t m_{t+1} + a_t dh_t,    dlog_a_t = m_t h_{t-1}

so that the backward pass is the same recurrence backwards in time, and needs log_a and h, which is the output. Nothing is divided
by a gate: a = 0 is safe, which is how a reset enters. A token with log_a = 0 and x = 0 leaves the state as it was.

A CPU walks through time: a row [B, D] a step, which costs less than the passes over memory of any form by chunks or by halves.
Elsewhere a step costs a launch: chunks follow each other, and inside them (a, x) are composed by an associative scan. A TPU has a
kernel, `ops.pallas.diagonal_scan`, for what it can serve.
"""

import functools

import jax
import jax.numpy as jnp

from jaxeff.core import sequence
from jaxeff.core.errors import lookup
from jaxeff.core.sharding import RULES, Rules
from jaxeff.core.target import platform


def diagonal_scan(
    log_a_BTD: jax.Array,
    x_BTD: jax.Array,
    state_BD: jax.Array | None = None,
    reset_BT: jax.Array | None = None,
    *,
    impl: str | None = None,
    chunk: int = 256,
    recompute: bool = True,
    mesh=None,
    rules: Rules = RULES,
) -> tuple[jax.Array, jax.Array]:
    """(h_BTD in x's dtype, final state [B, D] in float32); computed in float32 throughout.

    log_a: at most 0, -inf is a = 0. state_BD: None is zero. reset_BT: True where the state is zeroed before token t, whose log_a
    then has no effect. impl: "fast" (default) or "reference". chunk: of the associative scans; a CPU and a kernel have none.
    recompute: keep nothing but the arguments between forward and backward; False keeps log_a and h in float32, for callers that
    wrap more than this in `jax.checkpoint` themselves. For a TPU kernel: mesh, which may cut the batch and, as it cuts heads, the
    channels, and rules of its logical axes.

    Raises ValueError for shapes that disagree and a chunk below 1.
    """
    form = lookup(IMPLS, impl or "fast", "form of diagonal_scan")
    if chunk < 1:
        raise ValueError(f"diagonal_scan: chunk must be at least 1, found {chunk}")
    state_BD = _check(log_a_BTD, x_BTD, state_BD, reset_BT)
    T = x_BTD.shape[1]
    if form is diagonal_scan_reference:
        run = _scan
    elif T == 1:
        run = _single
    else:
        plain = functools.partial(_fast, None if platform() == "cpu" else min(chunk, T))
        run = _by_kernel(x_BTD, mesh, rules) or plain
        run = jax.checkpoint(run) if recompute else run
    form = lambda state_BD: run(log_a_BTD, x_BTD, state_BD, reset_BT)  # noqa: E731
    h_BTD, state_BD = _after_slices(form, log_a_BTD, state_BD, reset_BT) if sequence.sliced() else form(state_BD)
    return h_BTD.astype(x_BTD.dtype), state_BD


def diagonal_scan_reference(log_a_BTD, x_BTD, state_BD=None, reset_BT=None):
    """The recurrence as a scan over time; arguments and results as for `diagonal_scan`."""
    h_BTD, state_BD = _scan(log_a_BTD, x_BTD, _check(log_a_BTD, x_BTD, state_BD, reset_BT), reset_BT)
    return h_BTD.astype(x_BTD.dtype), state_BD


def _after_slices(form, log_a_BTD, state_BD, reset_BT):
    """`form` of the state that the slices before this one leave, and the state after the last slice; see `core.sequence`."""
    return sequence.decaying(form, jnp.sum(log_a_BTD.astype(jnp.float32), axis=1), state_BD, reset_BT)


def _check(log_a_BTD, x_BTD, state_BD, reset_BT):
    """The state in float32, zero if None."""
    if x_BTD.ndim != 3 or x_BTD.shape[1] < 1:
        raise ValueError(f"diagonal_scan: x has shape {x_BTD.shape}, expected (B, T, D) with T at least 1")
    B, T, D = x_BTD.shape
    for name, x, shape in (
        ("log_a", log_a_BTD, (B, T, D)),
        ("state", state_BD, (B, D)),
        ("reset", reset_BT, (B, T)),
    ):
        if x is not None and x.shape != shape:
            raise ValueError(f"diagonal_scan: {name} has shape {x.shape}, expected {shape}")
    return jnp.zeros((B, D), jnp.float32) if state_BD is None else state_BD.astype(jnp.float32)


def _step(state_BD, token):
    """One token of the recurrence: (new state, the same)."""
    log_a_BD, x_BD, reset_B = token
    if reset_B is not None:
        state_BD = jnp.where(reset_B[:, None], 0.0, state_BD)
    state_BD = jnp.exp(log_a_BD.astype(jnp.float32)) * state_BD + x_BD.astype(jnp.float32)
    return state_BD, state_BD


def _by_time(x_BT):
    """[B, T, ...] -> [T, B, ...] and back."""
    return None if x_BT is None else jnp.swapaxes(x_BT, 0, 1)


def _scan(log_a_BTD, x_BTD, state_BD, reset_BT):
    """(h_BTD, state), token by token."""
    state_BD, h_TBD = jax.lax.scan(_step, state_BD, [_by_time(x) for x in (log_a_BTD, x_BTD, reset_BT)])
    return _by_time(h_TBD), state_BD


def _single(log_a_BTD, x_BTD, state_BD, reset_BT):
    """(h_BTD, state) of one token."""
    state_BD, h_BD = _step(state_BD, [None if x is None else x[:, 0] for x in (log_a_BTD, x_BTD, reset_BT)])
    return h_BD[:, None], state_BD


def _by_kernel(x_BTD, mesh, rules: Rules):
    """What gives (h_BTD, state) by a kernel, None where there is none."""
    if platform() != "tpu":
        return None
    from jaxeff.ops.pallas import diagonal_scan as kernel

    if kernel.why_not(x_BTD, mesh, rules) is not None:
        return None
    return functools.partial(kernel.on_each_device, mesh=mesh, rules=rules)


def _fast(size, log_a_BTD, x_BTD, state_BD, reset_BT):
    """(h_BTD, state), with a gradient of its own."""
    log_a_TBD, x_TBD = (_by_time(x.astype(jnp.float32)) for x in (log_a_BTD, x_BTD))
    h_TBD, state_BD = _recurrence(size, log_a_TBD, x_TBD, state_BD, _by_time(reset_BT))
    return _by_time(h_TBD), state_BD


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(size, log_a_TBD, x_TBD, state_BD, reset_TB):
    """(h [T, B, D], state [B, D])."""
    return _forward(size, log_a_TBD, x_TBD, state_BD, reset_TB)[0]


def _forward(size, log_a_TBD, x_TBD, state_BD, reset_TB):
    """(what `_recurrence` returns, what its backward pass needs)."""
    h_TBD = _states(size, _gate(log_a_TBD, reset_TB), x_TBD, state_BD)
    return (h_TBD, h_TBD[-1]), (log_a_TBD, h_TBD, state_BD, reset_TB)


def _backward(size, kept, cotangents):
    """The gradients of `_recurrence`'s arguments by the equations at the head of this file."""
    log_a_TBD, h_TBD, state_BD, reset_TB = kept
    dh_TBD, dstate_BD = cotangents
    a_TBD = _gate(log_a_TBD, reset_TB)
    m_TBD = _states(size, a_TBD, a_TBD * dh_TBD, dstate_BD, reverse=True)
    l_TBD = dh_TBD + jnp.concatenate([m_TBD[1:], dstate_BD[None]])
    dlog_a_TBD = m_TBD * jnp.concatenate([state_BD[None], h_TBD[:-1]])
    return dlog_a_TBD, l_TBD, m_TBD[0], None


_recurrence.defvjp(_forward, _backward)


def _gate(log_a_TBD, reset_TB):
    """a [T, B, D], 0 at a reset."""
    a_TBD = jnp.exp(log_a_TBD)
    return a_TBD if reset_TB is None else jnp.where(reset_TB[:, :, None], 0.0, a_TBD)


def _states(size, a_TBD, x_TBD, h_BD, reverse=False):
    """h_t = a_t h_{t-1} + x_t for all t, backwards in time h_t = a_t h_{t+1} + x_t; size None: token by token."""
    if size is None:
        return jax.lax.scan(lambda h, ax: (ax[0] * h + ax[1],) * 2, h_BD, (a_TBD, x_TBD), reverse=reverse)[1]

    def cut(x_TBD, fill):
        """[K, I, B, D], what leaves the state as it is after the end."""
        T, B, D = x_TBD.shape
        x_TBD = jnp.pad(x_TBD, ((0, -T % size), (0, 0), (0, 0)), constant_values=fill)
        return x_TBD.reshape(-1, size, B, D)

    def one(h_BD, chunk):
        a_IBD, x_IBD = jax.lax.associative_scan(_compose, chunk, reverse=reverse)
        h_IBD = a_IBD * h_BD[None] + x_IBD
        return h_IBD[0 if reverse else -1], h_IBD

    h_KIBD = jax.lax.scan(one, h_BD, (cut(a_TBD, 1.0), cut(x_TBD, 0.0)), reverse=reverse)[1]
    return h_KIBD.reshape(-1, *h_BD.shape)[: len(x_TBD)]


def _compose(first, then):
    """One after the other: h -> a' (a h + x) + x'."""
    (a, x), (a_, x_) = first, then
    return a_ * a, a_ * x + x_


IMPLS = {"fast": diagonal_scan, "reference": diagonal_scan_reference}
