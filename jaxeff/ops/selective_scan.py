"""The selective scan of Mamba (Gu and Dao 2023, "Mamba", section 3.2, with the discretisation of its published code).

    h_t[d, n] = g_t[d, n] h_{t-1}[d, n] + dt_t[d] x_t[d] b_t[n]        g_t[d, n] = exp(dt_t[d] a[d, n]),  dt >= 0,  a < 0
    y_t[d] = sum_n c_t[n] h_t[d, n]

B batch, T time, D channels, N state, K chunks, I time within a chunk. Inside, a state is [N, D]: channels are many, states few.

A rate for each channel and state leaves no matrix product over time: every h_t has to be formed. That is done chunk by chunk,
states [I, B, N, D] at a time, in the backward pass again from the state that entered the chunk. There, with l_t the gradient of
h_t and m_t that of h_{t-1} through h_t,

    l_t = c_t dy_t + m_{t+1},    m_t = g_t l_t = g_t m_{t+1} + g_t c_t dy_t

is the same recurrence backwards in time, and d log g_t = m_t h_{t-1}. Nothing is divided by a gate, so that g = 0 is safe: that
is how a reset enters. A token with dt = 0 leaves the state as it was, whatever its x. A TPU has a kernel,
`ops.pallas.selective_scan`, for what it can serve.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxeff.core import sequence
from jaxeff.core.errors import lookup
from jaxeff.core.sharding import RULES, Rules
from jaxeff.core.target import platform


def selective_scan(
    x_BTD: jax.Array,
    dt_BTD: jax.Array,
    a_DN: jax.Array,
    b_BTN: jax.Array,
    c_BTN: jax.Array,
    state_BDN: jax.Array | None = None,
    reset_BT: jax.Array | None = None,
    *,
    impl: str | None = None,
    chunk: int = 16,
    recompute: bool = True,
    mesh=None,
    rules: Rules = RULES,
) -> tuple[jax.Array, jax.Array]:
    """(y_BTD in x's dtype, final state [B, D, N] in float32); computed in float32 throughout.

    dt: at least 0. a: at most 0. state_BDN: None is zero. reset_BT: True where the state is zeroed before token t.
    impl: "chunk" (default) or "reference". chunk: its states are in memory at once, and of all others one state a chunk;
    a kernel has its own.
    recompute: keep nothing but the arguments between forward and backward; False keeps one state a chunk, for callers that wrap
    more than this in `jax.checkpoint` themselves. For a TPU kernel: mesh, which may cut the batch and, as it cuts those of an MLP,
    the channels, and rules of its logical axes.

    Raises ValueError for shapes that disagree and a chunk below 1.
    """
    form = lookup(IMPLS, impl or "chunk", "form of selective_scan")
    if chunk < 1:
        raise ValueError(f"selective_scan: chunk must be at least 1, found {chunk}")
    state_BDN = _check(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, state_BDN, reset_BT)
    T = x_BTD.shape[1]
    if form is selective_scan_reference:
        run = _scan
    elif T == 1:
        run = _single
    else:
        size = min(chunk, T)
        # One kernel a chunk, and none a token: what a launch costs. A CPU gains nothing by it.
        plain = functools.partial(_chunked, size, 1 if platform() == "cpu" else size)
        run = _by_kernel(x_BTD, a_DN, mesh, rules) or plain
        run = jax.checkpoint(run) if recompute else run
    form = lambda state_BDN: run(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, state_BDN, reset_BT)  # noqa: E731
    after = _after_slices(form, dt_BTD, a_DN, state_BDN, reset_BT) if sequence.sliced() else form(state_BDN)
    y_BTD, state_BDN = after
    return y_BTD.astype(x_BTD.dtype), state_BDN


def selective_scan_reference(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, state_BDN=None, reset_BT=None):
    """The recurrence as a scan over time; arguments and results as for `selective_scan`."""
    state_BDN = _check(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, state_BDN, reset_BT)
    y_BTD, state_BDN = _scan(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, state_BDN, reset_BT)
    return y_BTD.astype(x_BTD.dtype), state_BDN


def _after_slices(form, dt_BTD, a_DN, state_BDN, reset_BT):
    """`form` of the state that the slices before this one leave, and the state after the last slice; see `core.sequence`."""
    time_BD = jnp.sum(dt_BTD.astype(jnp.float32), axis=1)
    return sequence.decaying(form, time_BD[..., None] * a_DN.astype(jnp.float32)[None], state_BDN, reset_BT)


def _check(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, state_BDN, reset_BT):
    """The state in float32, zero if None."""
    for name, x, ndim, axes in (("x", x_BTD, 3, "[batch, time, channels]"), ("a", a_DN, 2, "[channels, state]")):
        if x.ndim != ndim:
            raise ValueError(f"selective_scan: {name} has shape {x.shape}, expected {axes}")
    (B, T, D), N = x_BTD.shape, a_DN.shape[1]
    expected = {
        "dt": (dt_BTD, (B, T, D)),
        "a": (a_DN, (D, N)),
        "b": (b_BTN, (B, T, N)),
        "c": (c_BTN, (B, T, N)),
        "state": (state_BDN, (B, D, N)),
        "reset": (reset_BT, (B, T)),
    }
    for name, (x, shape) in expected.items():
        if x is not None and x.shape != shape:
            raise ValueError(f"selective_scan: {name} has shape {x.shape}, expected {shape}")
    return jnp.zeros((B, D, N), jnp.float32) if state_BDN is None else state_BDN.astype(jnp.float32)


def _scan(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, state_BDN, reset_BT):
    """(y_BTD, state), token by token."""
    tokens_TB = [None if x is None else jnp.moveaxis(x, 1, 0) for x in (x_BTD, dt_BTD, b_BTN, c_BTN, reset_BT)]
    state_BDN, y_TBD = jax.lax.scan(functools.partial(_step, a_DN), state_BDN, tokens_TB)
    return jnp.moveaxis(y_TBD, 0, 1), state_BDN


def _single(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, state_BDN, reset_BT):
    """(y_BTD, state) of one token."""
    token = [None if x is None else x[:, 0] for x in (x_BTD, dt_BTD, b_BTN, c_BTN, reset_BT)]
    state_BDN, y_BD = _step(a_DN, state_BDN, token)
    return y_BD[:, None], state_BDN


def _step(a_DN, state_BDN, token):
    """One token of the recurrence: (new state, y_BD)."""
    *token, reset_B = token
    a_DN, x_BD, dt_BD, b_BN, c_BN = (x.astype(jnp.float32) for x in (a_DN, *token))
    if reset_B is not None:
        state_BDN = jnp.where(reset_B[:, None, None], 0.0, state_BDN)
    g_BDN = jnp.exp(dt_BD[..., None] * a_DN[None])
    state_BDN = g_BDN * state_BDN + (dt_BD * x_BD)[..., None] * b_BN[:, None]
    return state_BDN, _product("bdn,bn->bd", state_BDN, c_BN)


def _by_kernel(x_BTD, a_DN, mesh, rules: Rules):
    """What gives (y_BTD, state) by a kernel, None where there is none."""
    if platform() != "tpu":
        return None
    from jaxeff.ops.pallas import selective_scan as kernel

    if kernel.why_not(x_BTD, a_DN, mesh, rules) is not None:
        return None
    return functools.partial(kernel.on_each_device, mesh=mesh, rules=rules)


def _product(eqn, x, y):
    """In full float32 on every platform: these are sums beside an elementwise pass over the states, which costs as much."""
    return jnp.einsum(eqn, x, y, precision="highest")


def _gate(dt_BD, a_ND, reset_B):
    """g [B, N, D] of one token, 0 at a reset."""
    g_BND = jnp.exp(dt_BD[:, None] * a_ND[None])
    return g_BND if reset_B is None else jnp.where(reset_B[:, None, None] > 0, 0.0, g_BND)


def _outer(n_BN, d_BD):
    """[B, N, D]."""
    return n_BN[:, :, None] * d_BD[:, None]


def _states(unroll, x, dt, b, a_ND, h_BND, reset):
    """(h_t, g_t) for all tokens of a chunk that h enters, both [I, B, N, D]."""

    def step(h_BND, token):
        x_BD, dt_BD, b_BN, reset_B = token
        g_BND = _gate(dt_BD, a_ND, reset_B)
        h_BND = g_BND * h_BND + _outer(b_BN, dt_BD * x_BD)
        return h_BND, (h_BND, g_BND)

    return jax.lax.scan(step, h_BND, (x, dt, b, reset), unroll=unroll)[1]


def _chunked(size, unroll, x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, state_BDN, reset_BT):
    """(y_BTD, state), chunks of `size` tokens."""
    T = x_BTD.shape[1]

    def cut(x_BTX):
        """[B, T, X] -> [K, I, B, X] in float32, zeros after the end (dt = 0: nothing happens there)."""
        x_BTX = jnp.pad(x_BTX.astype(jnp.float32), ((0, 0), (0, -T % size), (0, 0)))
        return rearrange(x_BTX, "b (k i) x -> k i b x", i=size)

    reset_KIB = None if reset_BT is None else cut(reset_BT[..., None])[..., 0]
    a_ND, h_BND = a_DN.astype(jnp.float32).T, jnp.swapaxes(state_BDN, 1, 2)
    y_KIBD, h_BND = _chunks(unroll, *map(cut, (x_BTD, dt_BTD, b_BTN, c_BTN)), a_ND, h_BND, reset_KIB)
    return rearrange(y_KIBD, "k i b d -> b (k i) d")[:, :T], jnp.swapaxes(h_BND, 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunks(unroll, x, dt, b, c, a_ND, h_BND, reset):
    """(y [K, I, B, D], state [B, N, D])."""
    return _forward(unroll, x, dt, b, c, a_ND, h_BND, reset)[0]


def _forward(unroll, x, dt, b, c, a_ND, h_BND, reset):
    """(what `_chunks` returns, what its backward pass needs: the arguments and the state that enters each chunk)."""

    def one(h_BND, chunk):
        x, dt, b, c, reset = chunk
        h_IBND, _ = _states(unroll, x, dt, b, a_ND, h_BND, reset)
        return h_IBND[-1], (_product("ibnd,ibn->ibd", h_IBND, c), h_BND)

    last_BND, (y, entering_KBND) = jax.lax.scan(one, h_BND, (x, dt, b, c, reset))
    return (y, last_BND), (x, dt, b, c, reset, a_ND, entering_KBND)


def _backward(unroll, kept, cotangents):
    """The gradients of `_chunks`'s arguments by the equations at the head of this file, from the last chunk to the first."""
    *kept, a_ND, entering_KBND = kept
    dy, m_BND = cotangents

    def step(carry, token):
        m_BND, da_BND = carry
        dt_BD, c_BN, dy_BD, g_BND, before_BND = token
        l_BND = _outer(c_BN, dy_BD) + m_BND
        m_BND = g_BND * l_BND
        d_log_g = m_BND * before_BND
        return (m_BND, da_BND + d_log_g * dt_BD[:, None]), (l_BND, d_log_g * a_ND[None])

    def one(carry, chunk):
        x, dt, b, c, reset, entering_BND, dy = chunk
        h, g = _states(unroll, x, dt, b, a_ND, entering_BND, reset)
        before = jnp.concatenate([entering_BND[None], h[:-1]])
        carry, (l, ddt_IBND) = jax.lax.scan(step, carry, (dt, c, dy, g, before), reverse=True, unroll=unroll)
        # A sum as a product with ones: XLA's own over an axis that is not the last is several times slower on a CPU.
        ddt = _product("ibnd,n->ibd", ddt_IBND, jnp.ones(len(a_ND)))
        du = _product("ibnd,ibn->ibd", l, b)
        db, dc = _product("ibnd,ibd->ibn", l, dt * x), _product("ibnd,ibd->ibn", h, dy)
        return carry, (du * dt, ddt + du * x, db, dc)

    start = m_BND, jnp.zeros_like(m_BND)
    (dh_BND, da_BND), gradients = jax.lax.scan(one, start, (*kept, entering_KBND, dy), reverse=True)
    return *gradients, jnp.sum(da_BND, axis=0), dh_BND, None


_chunks.defvjp(_forward, _backward)
IMPLS = {"chunk": selective_scan, "reference": selective_scan_reference}
