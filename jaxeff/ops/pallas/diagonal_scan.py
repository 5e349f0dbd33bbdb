"""The diagonal recurrence, as a Mosaic kernel for TPUs.

The equations are those of `ops.diagonal_scan`, all in float32. A step of the grid has a block of tokens and channels, read once
and written once; the state goes from block to block in vector memory. Within a block registers follow each other. The 8 tokens of
one are composed in three steps, each over twice as many (Hillis and Steele 1986, "Data parallel algorithms"), so that a register
waits for one multiply-add of the register before it. A reset is a gate of 0. The backward kernel goes from the last block to the
first.

The compiler's schedule for a v5e: a step of 256 tokens and 512 channels is 1109 cycles forward and 1452 backward, 0.12 and 0.15
ms of all 160 steps of B 4, T 2048, D 2560 at 1.5 GHz. Main memory takes longer, 0.31 and 0.51 ms, and that is what the planner
counts, for the XLA program of `ops.diagonal_scan` 7.6 and 7.0. `ops.pallas.chunks` says how to count again; lines with ">>" are a
loop over registers in the step, of eight turns.

B batch, T time, D channels, N blocks of time, I tokens and C channels of a block, S tokens of a register.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxeff.core.sharding import RULES, Rules
from jaxeff.core.target import kernel_scope
from jaxeff.ops.pallas import channels, chunks
from jaxeff.ops.pallas.channels import SUBLANES, rows
from jaxeff.ops.pallas.chunks import LANES, NEVER, Block, places

TOKENS = 256  # of a block, at most
CHANNELS = 512  # of a block, at most
TOGETHER = 4  # registers that are scheduled together


def why_not(x_BTD: jax.Array, mesh=None, rules: Rules = RULES) -> str | None:
    """Why the kernel cannot serve a call, or None. A mesh cuts the channels as it cuts heads."""
    return channels.why_not(x_BTD, mesh, rules, "heads")


def by_kernel(log_a_BTD, x_BTD, state_BD, reset_BT=None, *, interpret: bool = False):
    """(h_BTD, state [B, D]) in float32; arguments as for `ops.diagonal_scan`. interpret: run on any machine, slowly."""
    T = x_BTD.shape[1]
    log_a_BTD, x_BTD = (x.astype(jnp.float32) for x in (log_a_BTD, x_BTD))
    if reset_BT is not None:
        log_a_BTD = jnp.where(reset_BT[:, :, None], NEVER, log_a_BTD)
    # Zeros after the end: the state stays as it was.
    log_a_BTD, x_BTD = (jnp.pad(x, ((0, 0), (0, -T % tokens_of_a_step(T)), (0, 0))) for x in (log_a_BTD, x_BTD))
    with kernel_scope(0, LANES):  # no products of matrices
        h_BTD, state_B1D = _recurrence(log_a_BTD, x_BTD, state_BD.astype(jnp.float32)[:, None], interpret)
    return h_BTD[:, :T], state_B1D[:, 0]


def on_each_device(log_a_BTD, x_BTD, state_BD, reset_BT=None, *, mesh=None, rules: Rules = RULES):
    """`by_kernel` by each device of the mesh for its rows and channels."""
    arrays = dict(log_a=log_a_BTD, x=x_BTD, state=state_BD, reset=reset_BT)
    tokens = ("batch", None, "heads")
    axes = dict(log_a=tokens, x=tokens, state=("batch", "heads"), reset=("batch", None))
    run = lambda log_a, x, state, reset: by_kernel(log_a, x, state, reset)  # noqa: E731
    return channels.on_each_device(run, arrays, axes, mesh, rules)


def tokens_of_a_step(T: int) -> int:
    """I: steps of much the same size, whole turns of the loop over registers."""
    steps, turn = -(-T // TOKENS), TOGETHER * SUBLANES
    return -(-T // (steps * turn)) * turn


def _composed(a_SC, x_SC, back: bool = False):
    """(A, X) of a register's tokens: h_t = A_t h + X_t for the h before its first one; back: m_t = A_t m + X_t for the m after its
    last one."""
    place_SC = places(0, a_SC.shape)
    for by in (1, 2, 4):
        within, turn = (place_SC < SUBLANES - by, SUBLANES - by) if back else (place_SC >= by, by)
        x_SC = x_SC + a_SC * jnp.where(within, pltpu.roll(x_SC, turn, 0), 0.0)
        a_SC = a_SC * jnp.where(within, pltpu.roll(a_SC, turn, 0), 1.0)
    return a_SC, x_SC


def _later(y_SC, before_1C):
    """y moved by a token to later ones."""
    return jnp.where(places(0, y_SC.shape) == 0, before_1C, pltpu.roll(y_SC, 1, 0))


def _earlier(y_SC, after_1C):
    """y moved by a token to earlier ones."""
    return jnp.where(places(0, y_SC.shape) == SUBLANES - 1, after_1C, pltpu.roll(y_SC, SUBLANES - 1, 0))


def _forward_kernel(log_a, x, start, h, state):
    @pl.when(pl.program_id(2) == 0)
    def _():
        state[...] = start[...]

    def step(n, h_1C):
        at = rows(n)
        a_SC, x_SC = _composed(jnp.exp(log_a[0, at]), x[0, at])
        h_SC = a_SC * h_1C + x_SC
        h[0, at] = h_SC
        return h_SC[SUBLANES - 1 :]

    state[0] = jax.lax.fori_loop(0, x.shape[1] // SUBLANES, step, state[0], unroll=TOGETHER)


def _backward_kernel(log_a, h, near, start, dh, dstate, dlog_a, dx, m):
    """near: h of the 8 tokens before the block. m: of the first token of what is done."""
    block, last = pl.program_id(2), h.shape[1] // SUBLANES - 1

    @pl.when(block == 0)
    def _():
        m[...] = dstate[...]

    entering_1C = jnp.where(block == pl.num_programs(2) - 1, start[0], near[0, SUBLANES - 1 :])

    def step(turn, m_1C):
        n = last - turn
        at = rows(n)
        a_SC, dh_SC, h_SC = jnp.exp(log_a[0, at]), dh[0, at], h[0, at]
        before_1C = jnp.where(n == 0, entering_1C, h[0, rows(jnp.maximum(n - 1, 0))][SUBLANES - 1 :])
        gates_SC, sums_SC = _composed(a_SC, a_SC * dh_SC, back=True)
        m_SC = gates_SC * m_1C + sums_SC
        dx[0, at] = dh_SC + _earlier(m_SC, m_1C)
        dlog_a[0, at] = m_SC * _later(h_SC, before_1C)
        return m_SC[:1]

    m[0] = jax.lax.fori_loop(0, last + 1, step, m[0], unroll=TOGETHER)


def _layout(x_BTD, back: bool = False):
    """(the grid; blocks of tokens, of the 8 tokens before each, of the state)."""
    (B, T, D), I = x_BTD.shape, tokens_of_a_step(x_BTD.shape[1])  # noqa: E741
    N, C = T // I, channels.channels_of_a_step(D, CHANNELS)
    time = (lambda n: N - 1 - n) if back else (lambda n: n)
    tokens = Block((B, T, D), (1, I, C), lambda b, d, n: (b, time(n), d))
    near = Block((B, T, D), (1, SUBLANES, C), lambda b, d, n: (b, jnp.maximum(time(n) * (I // SUBLANES) - 1, 0), d))
    state = Block((B, 1, D), (1, 1, C), lambda b, d, n: (b, 0, d))
    return (B, D // C, N), tokens, near, state


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _recurrence(log_a_BTD, x_BTD, state_B1D, interpret: bool):
    """(h_BTD, state) of whole blocks of time."""
    return _forward(log_a_BTD, x_BTD, state_B1D, interpret)[0]


def _forward(log_a_BTD, x_BTD, state_B1D, interpret):
    grid, tokens, _, state = _layout(x_BTD)
    inputs = [(log_a_BTD, tokens), (x_BTD, tokens), (state_B1D, state)]
    outputs = [(tokens, jnp.float32), (state, jnp.float32)]
    h_BTD, after_B1D = chunks.call(_forward_kernel, grid, inputs, outputs, interpret)
    return (h_BTD, after_B1D), (log_a_BTD, h_BTD, state_B1D)


def _backward(interpret, kept, gradients):
    (log_a_BTD, h_BTD, state_B1D), (dh_BTD, dstate_B1D) = kept, gradients
    grid, tokens, near, state = _layout(h_BTD, back=True)
    inputs = [
        (log_a_BTD, tokens),
        (h_BTD, tokens),
        (h_BTD, near),
        (state_B1D, state),
        (dh_BTD, tokens),
        (dstate_B1D, state),
    ]
    outputs = [(tokens, jnp.float32), (tokens, jnp.float32), (state, jnp.float32)]
    return tuple(chunks.call(_backward_kernel, grid, inputs, outputs, interpret))


_recurrence.defvjp(_forward, _backward)
