"""The selective scan of Mamba, as a Mosaic kernel for TPUs.

The equations are those of `ops.selective_scan`, all in float32. A step of the grid has the tokens of a chunk and some channels;
token follows token, with the state [N, C] in registers, and none goes to main memory but the one that enters a chunk. b and c come
as columns, [N, T], of which a token's fills all lanes; what a reset adds to log2 g makes g = 0. The backward kernel, which goes
from the last chunk to the first, forms a chunk's states again from the one that entered it and keeps them in vector memory.

The compiler's schedule for a v5e, N 16: a step of 1024 channels is 7,588 cycles forward and 22,477 backward, 7,876 and 23,709 where
texts start; all 256 steps of B 4, T 2048, D 4096 at 1.5 GHz are 1.30 and 3.84 ms, for which main memory has 0.51 and 0.82. The
planner counts 20.0 and 60.1 for the XLA program of `ops.selective_scan`. `ops.pallas.chunks` says how to count again; lines with
">>" are the loops over registers of tokens in the step, of 16 turns, one forward and two backward.

B batch, T time, D channels, K chunks, I tokens and C channels of a step, N state, S tokens of a register, R rows of columns: b, c
and, where texts start, 8 times what a reset adds.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxeff.core.sharding import RULES, Rules
from jaxeff.core.target import kernel_scope
from jaxeff.ops.pallas import channels, chunks
from jaxeff.ops.pallas.channels import SUBLANES, rows
from jaxeff.ops.pallas.chunks import CHUNK, LANES, NEVER, Block, places

CHANNELS = 1024  # of a step, at most
STATES = 16 * CHANNELS  # numbers of a token's states: those of a chunk fit the vector memory of a v5e
FORWARD, BACKWARD = 3.7, 11.0  # cycles for a register of states, by the schedule
LOG2E = 1.4426950408889634


def why_not(x_BTD: jax.Array, a_DN: jax.Array, mesh=None, rules: Rules = RULES) -> str | None:
    """Why the kernel cannot serve a call, or None. A mesh cuts the channels as it cuts those of an MLP."""
    N = a_DN.shape[1]
    if N % SUBLANES or N > STATES // LANES:
        return f"needs a state of a multiple of {SUBLANES}, at most {STATES // LANES}, found {N}"
    return channels.why_not(x_BTD, mesh, rules, "mlp")


def by_kernel(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, state_BDN, reset_BT=None, *, interpret: bool = False):
    """(y_BTD, state [B, D, N]) in float32; arguments as for `ops.selective_scan`. interpret: run on any machine, slowly."""
    B, T, _ = x_BTD.shape
    # Zeros after the end: dt = 0, nothing happens there.
    pad = lambda x_BTX: jnp.pad(x_BTX.astype(jnp.float32), ((0, 0), (0, -T % CHUNK), (0, 0)))  # noqa: E731
    columns = [b_BTN, c_BTN]
    if reset_BT is not None:
        columns.append(jnp.broadcast_to(jnp.where(reset_BT, NEVER, 0.0)[:, :, None], (B, T, SUBLANES)))
    columns_BRT = jnp.concatenate([pad(x) for x in columns], axis=2).swapaxes(1, 2)
    state_BND = state_BDN.astype(jnp.float32).swapaxes(1, 2)
    arrays = pad(x_BTD), pad(dt_BTD), a_DN.astype(jnp.float32).T, columns_BRT, state_BND
    y_BTD, state_BND = _recurrence(*arrays, interpret)
    return y_BTD[:, :T], state_BND.swapaxes(1, 2)


def on_each_device(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, state_BDN, reset_BT=None, *, mesh=None, rules: Rules = RULES):
    """`by_kernel` by each device of the mesh for its rows and channels."""
    arrays = dict(x=x_BTD, dt=dt_BTD, a=a_DN, b=b_BTN, c=c_BTN, state=state_BDN, reset=reset_BT)
    tokens, columns = ("batch", None, "mlp"), ("batch", None, None)
    axes = dict(
        x=tokens, dt=tokens, a=("mlp", None), b=columns, c=columns, state=("batch", "mlp", None), reset=columns[:2]
    )
    run = lambda x, dt, a, b, c, state, reset: by_kernel(x, dt, a, b, c, state, reset)  # noqa: E731
    return channels.on_each_device(run, arrays, axes, mesh, rules)


class Token(NamedTuple):
    """Its numbers: dt and dt x, rows [1, C]; b, c and what a reset adds to log2 g, columns [N, 1]."""

    dt: jax.Array
    u: jax.Array
    b: jax.Array
    c: jax.Array
    reset: jax.Array | float

    def gate(self, rate_NC):
        """g, by rates a log2 e."""
        return jnp.exp2(self.dt * rate_NC + self.reset)

    def after(self, h_NC, rate_NC):
        """The state after the token."""
        return self.gate(rate_NC) * h_NC + self.u * self.b


def _tokens(n, x, dt, columns, N: int) -> list[Token]:
    """Of register n."""
    dt_SC = dt[0, rows(n)]
    u_SC = dt_SC * x[0, rows(n)]
    turned_RI = pltpu.roll(columns[0], CHUNK - SUBLANES * n, 1)

    def token(s: int) -> Token:
        column_R1 = turned_RI[:, s : s + 1]
        reset = jnp.concatenate([column_R1[2 * N :]] * (N // SUBLANES)) if len(column_R1) > 2 * N else 0.0
        return Token(dt_SC[s : s + 1], u_SC[s : s + 1], column_R1[:N], column_R1[N : 2 * N], reset)

    return [token(s) for s in range(SUBLANES)]


def _over_states(x_NC):
    return jnp.sum(x_NC, axis=0, keepdims=True)


def _over_channels(x_NC):
    return jnp.sum(x_NC, axis=1, keepdims=True)


def _forward_kernel(x, dt, a, columns, start, y, entering, state):
    @pl.when(pl.program_id(2) == 0)
    def _():
        state[...] = start[...]

    rate_NC = LOG2E * a[...]
    entering[0, 0] = state[0]

    def step(n, h_NC):
        y_SC = []
        for token in _tokens(n, x, dt, columns, len(rate_NC)):
            h_NC = token.after(h_NC, rate_NC)
            y_SC.append(_over_states(h_NC * token.c))
        y[0, rows(n)] = jnp.concatenate(y_SC)
        return h_NC

    state[0] = jax.lax.fori_loop(0, CHUNK // SUBLANES, step, state[0])


def _backward_kernel(*refs):
    a, dstate, da, m = (refs[i] for i in (2, 6, 10, 11))

    @pl.when(pl.program_id(2) == 0)
    def _():
        m[...], da[...] = dstate[...], jnp.zeros_like(da)

    pl.run_scoped(functools.partial(_chunk_backward, *refs), pltpu.VMEM((CHUNK + 1, *a.shape), jnp.float32))


def _chunk_backward(x, dt, a, columns, entering, dy, _, dx, ddt, dcolumns, da, m, h):
    """h: the states before the chunk's tokens and after the last. m: the gradient of the state before what is done."""
    rate_NC, last = LOG2E * a[...], CHUNK // SUBLANES - 1
    N = len(rate_NC)
    h[0] = entering[0, 0]

    def form(n, h_NC):
        for s, token in enumerate(_tokens(n, x, dt, columns, N)):
            h_NC = token.after(h_NC, rate_NC)
            h[SUBLANES * n + s + 1] = h_NC
        return h_NC

    jax.lax.fori_loop(0, last + 1, form, h[0])
    lane_RI = places(1, (2 * N, CHUNK))

    def step(turn, carry):
        m_NC, da_NC, sums_RI = carry
        n = last - turn
        at, after_NC = rows(n), h[SUBLANES * (n + 1)]
        x_SC, dt_SC, dy_SC = x[0, at], dt[0, at], dy[0, at]
        du, rates = [], []
        for s, token in reversed(list(enumerate(_tokens(n, x, dt, columns, N)))):
            t, dy_1C = SUBLANES * n + s, dy_SC[s : s + 1]
            before_NC, l_NC = h[t], dy_1C * token.c + m_NC
            m_NC = token.gate(rate_NC) * l_NC
            dlog_NC = m_NC * before_NC
            da_NC = da_NC + dlog_NC * token.dt
            du.append(_over_states(l_NC * token.b))
            rates.append(_over_states(dlog_NC * rate_NC))
            sums_R1 = jnp.concatenate([_over_channels(l_NC * token.u), _over_channels(after_NC * dy_1C)])
            sums_RI, after_NC = jnp.where(lane_RI == t, sums_R1, sums_RI), before_NC
        du_SC, rates_SC = (jnp.concatenate(y[::-1]) for y in (du, rates))
        dx[0, at], ddt[0, at] = du_SC * dt_SC, du_SC * x_SC + rates_SC / LOG2E
        return m_NC, da_NC, sums_RI

    carry = m[0], da[0], jnp.zeros((2 * N, CHUNK))
    m[0], da[0], dcolumns[0, 0] = jax.lax.fori_loop(0, last + 1, step, carry)


def _told(x_BTD, a_ND, cycles: float):
    """The context of a kernel's call: no products of matrices, but cycles."""
    return kernel_scope(0, LANES, int(cycles * x_BTD.size * len(a_ND) / (SUBLANES * LANES)))


class Layout(NamedTuple):
    """The grid, and blocks of arrays."""

    grid: tuple[int, int, int]
    tokens: Block
    a: Block
    columns: Block
    state: Block
    entering: Block
    sums: Block


def _layout(x_BTD, columns_BRT, N: int, back: bool = False) -> Layout:
    (B, T, D), R = x_BTD.shape, columns_BRT.shape[1]
    K, C = T // CHUNK, channels.channels_of_a_step(D, min(CHANNELS, STATES // N))
    time = (lambda k: K - 1 - k) if back else (lambda k: k)
    return Layout(
        (B, D // C, K),
        Block((B, T, D), (1, CHUNK, C), lambda b, d, k: (b, time(k), d)),
        Block((N, D), (N, C), lambda b, d, k: (0, d)),
        Block((B, R, T), (1, R, CHUNK), lambda b, d, k: (b, 0, time(k))),
        Block((B, N, D), (1, N, C), lambda b, d, k: (b, 0, d)),
        Block((B, K, N, D), (1, 1, N, C), lambda b, d, k: (b, time(k), 0, d)),
        Block((B, D // C, 2 * N, T), (1, 1, 2 * N, CHUNK), lambda b, d, k: (b, d, 0, time(k))),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _recurrence(x_BTD, dt_BTD, a_ND, columns_BRT, state_BND, interpret: bool):
    """(y_BTD, state) of whole chunks."""
    return _forward(x_BTD, dt_BTD, a_ND, columns_BRT, state_BND, interpret)[0]


def _forward(x_BTD, dt_BTD, a_ND, columns_BRT, state_BND, interpret):
    at = _layout(x_BTD, columns_BRT, len(a_ND))
    inputs = [(x_BTD, at.tokens), (dt_BTD, at.tokens), (a_ND, at.a), (columns_BRT, at.columns), (state_BND, at.state)]
    outputs = [(place, jnp.float32) for place in (at.tokens, at.entering, at.state)]
    with _told(x_BTD, a_ND, FORWARD):
        y_BTD, entering_BKND, after_BND = chunks.call(_forward_kernel, at.grid, inputs, outputs, interpret)
    return (y_BTD, after_BND), (x_BTD, dt_BTD, a_ND, columns_BRT, entering_BKND)


def _backward(interpret, kept, gradients):
    (x_BTD, dt_BTD, a_ND, columns_BRT, entering_BKND), (dy_BTD, dstate_BND) = kept, gradients
    at = _layout(x_BTD, columns_BRT, len(a_ND), back=True)
    inputs = [
        (x_BTD, at.tokens),
        (dt_BTD, at.tokens),
        (a_ND, at.a),
        (columns_BRT, at.columns),
        (entering_BKND, at.entering),
    ]
    inputs += [(dy_BTD, at.tokens), (dstate_BND, at.state)]
    outputs = [(place, jnp.float32) for place in (at.tokens, at.tokens, at.sums, at.state, at.state)]
    with _told(x_BTD, a_ND, BACKWARD):
        dx, ddt, sums, da_BND, m_BND = chunks.call(_backward_kernel, at.grid, inputs, outputs, interpret)
    dcolumns_BRT = jnp.sum(sums, axis=1)
    dcolumns_BRT = jnp.pad(dcolumns_BRT, ((0, 0), (0, columns_BRT.shape[1] - dcolumns_BRT.shape[1]), (0, 0)))
    return dx, ddt, jnp.sum(da_BND, axis=0), dcolumns_BRT, m_BND


_recurrence.defvjp(_forward, _backward)
