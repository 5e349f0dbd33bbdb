"""The weighted average of RWKV-4 (Peng et al. 2023, "RWKV", equation 16 and appendix D).

    wkv_t = (num_{t-1} + e^{u + k_t} v_t) / (den_{t-1} + e^{u + k_t})
    num_t = e^{-w} num_{t-1} + e^{k_t} v_t;    den_t = e^{-w} den_{t-1} + e^{k_t}

B batch, T time, D channels, each by itself; M blocks, N chunks of a block, S times within a chunk. w is given as log decay = -w.

num and den stand for num e^top and den e^top, where top is the highest exponent among what they sum, so that no exponential of a
positive number is taken: keys of any size are safe. An empty state has top = -1e38, whose exponential is 0 and which, unlike
-inf, can be subtracted from itself.

Two forms for training. "scan" is the scan over time, its states computed again chunk by chunk in the backward pass: on a CPU a
step costs little, and a chunk stays in the cache. "chunk" walks through all chunks of a block at once, token by token: S steps
instead of S N, for accelerators. The states that enter the chunks come first, and need no steps: token j adds
e^{k_j - n_j w} (v_j, 1) to its chunk's sums, n_j tokens before its end, and a scan over the N sums adds them up. Blocks are
scanned, so that nothing is as long as the text but the arguments and y.

What is read of a state is num e^top and den e^top, for which any top would do: it is a constant of the gradient wherever one is
chosen, also that of the final state, and only a given state's top has a gradient.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxeff.core import sequence
from jaxeff.core.errors import lookup
from jaxeff.core.target import platform

EMPTY = -1e38
NOTHING = -2e38  # the exponent of what adds nothing, even to an empty state
STRONGEST = -1e30  # log decay below is this: its products with numbers of tokens stay finite
CHUNKS = 16  # of a block


class WKVState(NamedTuple):
    """The exponent of the sums, and the sums of e^{k - top} v and e^{k - top}: float32 [B, D] each."""

    top: jax.Array
    num: jax.Array
    den: jax.Array


def empty_wkv(batch: int, channels: int) -> WKVState:
    """Before the first token."""
    zero_BD = jnp.zeros((batch, channels), jnp.float32)
    return WKVState(jnp.full((batch, channels), EMPTY, jnp.float32), zero_BD, zero_BD)


def wkv(
    k_BTD: jax.Array,
    v_BTD: jax.Array,
    log_decay_D: jax.Array,
    bonus_D: jax.Array,
    state: WKVState | None = None,
    reset_BT: jax.Array | None = None,
    valid_BT: jax.Array | None = None,
    *,
    impl: str | None = None,
    chunk: int = 64,
    recompute: bool = True,
) -> tuple[jax.Array, WKVState]:
    """(y_BTD in k's dtype, final state); computed in float32 throughout.

    log_decay: -w, at most 0. bonus: u. state: None is empty. reset_BT: True where the state is emptied before token t, which does
    not read it either. valid_BT: False at padding, which leaves the state as it was, and where a reset has no effect and y means
    nothing; None is True throughout.
    impl: "scan" (default on CPU), "chunk" (default elsewhere) or "reference". chunk: S; in the backward pass "scan" holds the
    states of S tokens at once, and "chunk" those of 16 S, but takes S + 16 steps for as many tokens.
    recompute: keep nothing but the arguments between forward and backward; False is for callers that wrap more than this in
    `jax.checkpoint` themselves.

    Raises ValueError for shapes that disagree and a chunk below 1.
    """
    form = lookup(IMPLS, impl or ("scan" if platform() == "cpu" else "chunk"), "form of wkv")
    if chunk < 1:
        raise ValueError(f"wkv: chunk must be at least 1, found {chunk}")
    if k_BTD.ndim == 3 and k_BTD.shape[1] == 1:
        run = _single
    elif form is _scan:
        run = _scan
    else:
        run = functools.partial(form, size=chunk)
        run = jax.checkpoint(run) if recompute else run
    run = functools.partial(_after_slices, run) if sequence.sliced() else run
    return _checked(run, k_BTD, v_BTD, log_decay_D, bonus_D, state, reset_BT, valid_BT)


def wkv_reference(k_BTD, v_BTD, log_decay_D, bonus_D, state=None, reset_BT=None, valid_BT=None):
    """The recurrence as a scan over time; arguments and results as for `wkv`."""
    return _checked(_scan, k_BTD, v_BTD, log_decay_D, bonus_D, state, reset_BT, valid_BT)


def _checked(form, k_BTD, v_BTD, log_decay_D, bonus_D, state, reset_BT, valid_BT):
    """`form` on arguments of the right shapes, decay, bonus and state in float32."""
    if k_BTD.ndim != 3 or k_BTD.shape[1] < 1:
        raise ValueError(f"wkv: k has shape {k_BTD.shape}, expected (B, T, D) with T at least 1")
    B, T, D = k_BTD.shape
    expected = {"v": (v_BTD, (B, T, D)), "log_decay": (log_decay_D, (D,)), "bonus": (bonus_D, (D,))}
    expected |= {"reset": (reset_BT, (B, T)), "valid": (valid_BT, (B, T))}
    expected |= {} if state is None else {name: (x, (B, D)) for name, x in WKVState(*state)._asdict().items()}
    for name, (x, shape) in expected.items():
        if x is not None and x.shape != shape:
            raise ValueError(f"wkv: {name} has shape {x.shape}, expected {shape}")
    state = empty_wkv(B, D) if state is None else WKVState(*(x.astype(jnp.float32) for x in state))
    log_decay_D = jnp.maximum(log_decay_D.astype(jnp.float32), STRONGEST)
    if reset_BT is not None and valid_BT is not None:
        reset_BT = reset_BT & valid_BT
    y_BTD, state = form(k_BTD, v_BTD, log_decay_D, bonus_D.astype(jnp.float32), state, reset_BT, valid_BT)
    return y_BTD.astype(k_BTD.dtype), state


def _after_slices(form, k_BTD, v_BTD, log_decay_D, bonus_D, state, reset_BT, valid_BT):
    """`form` of the state that the slices before this one leave, and the state after the last slice; see `core.sequence`."""
    B, T, D = k_BTD.shape
    real_BT = jnp.ones((B, T), bool) if valid_BT is None else valid_BT
    reset_TB = jnp.zeros((T, B), bool) if reset_BT is None else reset_BT.T
    k_TBD, v_TBD = (jnp.moveaxis(x.astype(jnp.float32), 1, 0) for x in (k_BTD, v_BTD))
    own = jax.checkpoint(_sums)(log_decay_D, k_TBD, v_TBD, reset_TB, real_BT.T)  # keeps nothing but its arguments

    def join(earlier, later):
        (state, n_B, passes_B), (_, more_B, passes_on_B) = earlier, later
        return _carried(log_decay_D, state, later), n_B + more_B, passes_B & passes_on_B

    nothing = empty_wkv(B, D), jnp.zeros((B,), jnp.float32), jnp.ones((B,), bool)
    state = _carried(log_decay_D, state, sequence.before(own, join, nothing))
    y_BTD, state = form(k_BTD, v_BTD, log_decay_D, bonus_D, state, reset_BT, valid_BT)
    return y_BTD, sequence.last(state)


def _scan(k_BTD, v_BTD, log_decay_D, bonus_D, state, reset_BT, valid_BT):
    """(y_BTD, state), token by token."""
    tokens_TB = [None if x is None else jnp.moveaxis(x, 1, 0) for x in (k_BTD, v_BTD, reset_BT, valid_BT)]
    state, y_TBD = jax.lax.scan(functools.partial(_step, log_decay_D, bonus_D), state, tokens_TB)
    return jnp.moveaxis(y_TBD, 0, 1), state


def _single(k_BTD, v_BTD, log_decay_D, bonus_D, state, reset_BT, valid_BT):
    """(y_BTD, state) of one token."""
    token = [None if x is None else x[:, 0] for x in (k_BTD, v_BTD, reset_BT, valid_BT)]
    state, y_BD = _step(log_decay_D, bonus_D, state, token)
    return y_BD[:, None], state


def _step(log_decay_D, bonus_D, state, token):
    """One token, (new state, y), for any leading axes."""
    k, v, reset, valid = token
    k, v = k.astype(jnp.float32), v.astype(jnp.float32)
    log_decay, bonus = (x.reshape((1,) * (k.ndim - 1) + x.shape) for x in (log_decay_D, bonus_D))
    if reset is not None:
        state = state._replace(top=jnp.where(reset[..., None], EMPTY, state.top))
    read = _add(state, WKVState(bonus + k, v, jnp.ones_like(v)))
    if valid is not None:
        k, log_decay = jnp.where(valid[..., None], k, NOTHING), jnp.where(valid[..., None], log_decay, 0.0)
    after = _add(state._replace(top=state.top + log_decay), WKVState(k, v, jnp.ones_like(v)))
    return after, read.num / read.den


def _add(a: WKVState, b: WKVState) -> WKVState:
    """The sums of both, relative to the higher exponent."""
    top = jax.lax.stop_gradient(jnp.maximum(a.top, b.top))
    of_a, of_b = jnp.exp(a.top - top), jnp.exp(b.top - top)
    return WKVState(top, of_a * a.num + of_b * b.num, of_a * a.den + of_b * b.den)


def _by_chunk(k_BTD, v_BTD, log_decay_D, bonus_D, state, reset_BT, valid_BT, size: int):
    """(y_BTD, state), token by token, the backward pass chunk by chunk."""
    B, T = k_BTD.shape[:2]
    N = -(-T // size)
    S = -(-T // N)
    if N * S > T and valid_BT is None:
        valid_BT = jnp.ones((B, T), bool)
    tokens = [_padded(x, N * S, "b (n s) ... -> n s b ...", n=N) for x in (k_BTD, v_BTD, reset_BT, valid_BT)]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def chunk(state, tokens):
        return jax.lax.scan(functools.partial(_step, log_decay_D, bonus_D), state, tokens)

    state, y = jax.lax.scan(chunk, state, tokens)
    return rearrange(y, "n s b d -> b (n s) d")[:, :T], state


def _padded(x, T: int, pattern: str, **sizes):
    """[B, ...] of T tokens, zeros after its end, regrouped; None stays None."""
    if x is None:
        return None
    return rearrange(jnp.pad(x, ((0, 0), (0, T - x.shape[1])) + ((0, 0),) * (x.ndim - 2)), pattern, **sizes)


def _at_once(k_BTD, v_BTD, log_decay_D, bonus_D, state, reset_BT, valid_BT, size: int):
    """(y_BTD, state), block by block, the chunks of each at once."""
    (B, T), M, N, S = k_BTD.shape[:2], *_cut(k_BTD.shape[1], size)
    real_BT = jnp.ones((B, T), bool) if valid_BT is None else valid_BT

    cut = functools.partial(_padded, T=M * N * S, pattern="b (m n s) ... -> m s b n ...", m=M, n=N)
    block = functools.partial(_block, log_decay_D, bonus_D)
    tokens = [cut(x) for x in (k_BTD, v_BTD, reset_BT, valid_BT, real_BT)]
    if M == 1:
        state, y = block(state, jax.tree.map(lambda x: x[0], tokens))
        y = y[None]
    else:
        state, y = jax.lax.scan(jax.checkpoint(block, prevent_cse=False), state, tokens)
    return rearrange(y, "m s b n d -> b (m n s) d")[:, :T], state


def _cut(T: int, size: int) -> tuple[int, int, int]:
    """(blocks, chunks of a block, tokens of a chunk): hardly more than T tokens in all."""
    M = -(-T // (size * CHUNKS))
    N = -(-T // (size * M))
    return M, N, -(-T // (N * M))


def _block(log_decay_D, bonus_D, state, tokens):
    """(state after a block, y [S, B, N, D]): the states that enter its chunks, then all chunks at once."""
    *tokens, real = tokens
    k, v, reset, _ = tokens
    state, entering = _carry(log_decay_D, state, k.astype(jnp.float32), v.astype(jnp.float32), reset, real)
    _, y = jax.lax.scan(functools.partial(_step, log_decay_D, bonus_D), entering, tokens)
    return state, y


def _carry(log_decay_D, state, k, v, reset, real):
    """(state after the block, the states [B, N, D] that enter its chunks); real: no padding, none after the end either."""
    by_chunk = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), _sums(log_decay_D, k, v, reset, real))
    state, entering = jax.lax.scan(lambda state, sums: (_carried(log_decay_D, state, sums), state), state, by_chunk)
    return state, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), entering)


def _sums(log_decay_D, k, v, reset, real):
    """What the tokens [S, ...] of each chunk do to the state before them: (what they add, how many there are, whether a state
    passes through, None for all)."""
    left, passes = real, None  # what is left of a chunk at its end
    if reset is not None:
        left, passes = real & (_after(reset) == 0), ~jnp.any(reset, axis=0)
    exponent = k + _after(real)[..., None] * log_decay_D.reshape((1,) * real.ndim + (-1,))
    exponent = jnp.where(left[..., None], exponent, NOTHING)
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(exponent, axis=0), EMPTY))
    weight = jnp.exp(exponent - top[None])
    added = WKVState(top, jnp.sum(weight * v, axis=0), jnp.sum(weight, axis=0))
    return added, jnp.sum(real, axis=0, dtype=jnp.float32), passes


def _carried(log_decay_D, state, sums):
    """The state after tokens of which `_sums` says what they do."""
    added, count_B, passes_B = sums
    top = state.top + count_B[:, None] * log_decay_D[None]
    if passes_B is not None:
        top = jnp.where(passes_B[:, None], top, NOTHING)
    return _add(state._replace(top=top), added)


def _after(which):
    """How many there are after each place along the first axis."""
    n = which.astype(jnp.float32)
    return jnp.flip(jnp.cumsum(jnp.flip(n, 0), axis=0), 0) - n


IMPLS = {"scan": _by_chunk, "chunk": _at_once, "reference": _scan}
