"""The diagonally gated recurrence of linear attention, RetNet, Mamba-2, GLA and RWKV-6.

    S_t = diag(a_t) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t        a_t in [0, 1], given as log a_t <= 0

B batch, T time, H heads, C key dim, E value dim, N chunks, I and J times within a chunk; A is C for a gate per key channel
and 1 for one per head.

The chunked form (Hua et al. 2022; Yang et al. 2023, "Gated linear attention") turns the recurrence into matrix products: pairs
(i, j) within a chunk are weighted by exp(log a_{j+1} + ... + log a_i), and the state carries what lies before the chunk. With
g the cumulative sum of log a, the usual weights exp(g_i) exp(-g_j) overflow for strong gates, and exp(g_i - g_j) loses its
digits to cancellation. Here a chunk is halved again and again: for i in the right and j in the left half of a block, the sum
is (from the middle to i) + (from j to the middle), both of them sums of non-positive terms. No difference is ever taken, in
the gradient neither, so that any gate is safe, also a = 0: that is how a reset enters.
"""

import functools

import jax
import jax.numpy as jnp

from jaxeff.core.errors import lookup

# log a of a reset: exp is 0, and sums of it over any length stay finite, which -inf would not survive times 0 in a gradient.
RESET = -1e30


def gated_linear(
    q_BTHC: jax.Array,
    k_BTHC: jax.Array,
    v_BTHE: jax.Array,
    log_a: jax.Array | None = None,
    state_BHCE: jax.Array | None = None,
    reset_BT: jax.Array | None = None,
    *,
    impl: str | None = None,
    chunk: int = 64,
    recompute: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """(o_BTHE in q's dtype, final state [B, H, C, E] in float32); computed in float32 throughout.

    log_a: None (a = 1), [B, T, H] or [B, T, H, C], at most 0. state_BHCE: None is zero. reset_BT: True where the state is
    zeroed before token t. A token with k = 0 and log a = 0 leaves the state as it was.
    impl: "chunk" (default) or "reference". chunk: a power of two; time C + E + chunk per token, memory chunk per token.
    recompute: keep nothing but the arguments between forward and backward, states and weights are computed again; False is for
    callers that wrap more than this in `jax.checkpoint` themselves.

    Raises ValueError for shapes that disagree and a chunk that is no power of two.
    """
    state_BHCE = _check(q_BTHC, k_BTHC, v_BTHE, log_a, state_BHCE, reset_BT, chunk)
    if lookup(IMPLS, impl or "chunk", "form of gated_linear") is gated_linear_reference:
        return gated_linear_reference(q_BTHC, k_BTHC, v_BTHE, log_a, state_BHCE, reset_BT)
    T = q_BTHC.shape[1]
    if T == 1:
        step = [None if x is None else x[:, 0] for x in (q_BTHC, k_BTHC, v_BTHE, _gates(log_a, reset_BT))]
        state_BHCE, o_BHE = _step(state_BHCE, step)
        return o_BHE[:, None].astype(q_BTHC.dtype), state_BHCE
    size = min(chunk, 1 << (T - 1).bit_length())
    run = functools.partial(_chunked, size=size)
    return (jax.checkpoint(run) if recompute else run)(q_BTHC, k_BTHC, v_BTHE, log_a, state_BHCE, reset_BT)


def gated_linear_reference(q_BTHC, k_BTHC, v_BTHE, log_a=None, state_BHCE=None, reset_BT=None):
    """The recurrence as a scan over time; arguments and results as for `gated_linear`."""
    state_BHCE = _check(q_BTHC, k_BTHC, v_BTHE, log_a, state_BHCE, reset_BT)
    steps = [x if x is None else jnp.moveaxis(x, 1, 0) for x in (q_BTHC, k_BTHC, v_BTHE, _gates(log_a, reset_BT))]
    state_BHCE, o_TBHE = jax.lax.scan(_step, state_BHCE, steps)
    return jnp.moveaxis(o_TBHE, 0, 1).astype(q_BTHC.dtype), state_BHCE


def _check(q_BTHC, k_BTHC, v_BTHE, log_a, state_BHCE, reset_BT, chunk=1):
    """The state in float32, zero if None."""
    B, T, H, C = q_BTHC.shape
    E = v_BTHE.shape[-1]
    expected = {
        "k": (k_BTHC, [(B, T, H, C)]),
        "v": (v_BTHE, [(B, T, H, E)]),
        "log_a": (log_a, [(B, T, H), (B, T, H, C)]),
        "state": (state_BHCE, [(B, H, C, E)]),
        "reset": (reset_BT, [(B, T)]),
    }
    for name, (x, shapes) in expected.items():
        if x is not None and x.shape not in shapes:
            raise ValueError(f"gated_linear: {name} has shape {x.shape}, expected {' or '.join(map(str, shapes))}")
    if chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f"gated_linear: chunk must be a power of two, found {chunk}")
    return jnp.zeros((B, H, C, E), jnp.float32) if state_BHCE is None else state_BHCE.astype(jnp.float32)


def _gates(log_a, reset_BT):
    """log a [B, T, H, A] in float32 with the resets in it; heads and channels that share a gate have size 1. None: a = 1."""
    if log_a is not None:
        log_a = log_a.astype(jnp.float32)
        log_a = log_a[..., None] if log_a.ndim == 3 else log_a
    if reset_BT is None:
        return log_a
    return jnp.where(reset_BT[:, :, None, None], RESET, 0.0 if log_a is None else log_a)


def _step(state_BHCE, token):
    """One token of the recurrence: (new state, o_BHE)."""
    q_BHC, k_BHC, v_BHE, log_a_BHA = token
    q_BHC, k_BHC, v_BHE = (x.astype(jnp.float32) for x in (q_BHC, k_BHC, v_BHE))
    if log_a_BHA is not None:
        state_BHCE = jnp.exp(log_a_BHA)[..., None] * state_BHCE
    state_BHCE = state_BHCE + k_BHC[..., None] * v_BHE[:, :, None]
    return state_BHCE, jnp.einsum("bhce,bhc->bhe", state_BHCE, q_BHC)


def _chunked(q_BTHC, k_BTHC, v_BTHE, log_a, state_BHCE, reset_BT, size: int):
    """All chunks at once, but for the scan that carries the state from one to the next."""
    T = q_BTHC.shape[1]

    def cut(x):
        """[B, T, H, X] -> [B, H, N, I, X] in float32, zeros after the end (k = 0, log a = 0: nothing happens there)."""
        if x is None:
            return None
        x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, -T % size), (0, 0), (0, 0)))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 3, 1)

    q, k, v = map(cut, (q_BTHC, k_BTHC, v_BTHE))
    if log_a is None:
        weights, since, until = _ungated(q, k, None if reset_BT is None else cut(reset_BT[:, :, None, None]), size)
    else:
        weights, since, until = _gated(q, k, cut(_gates(log_a, reset_BT)), size)
    o = jnp.einsum("bhnij,bhnje->bhnie", weights, v)
    if since is not None:
        q, k = q * since, k * until
    added_NBHCE = jnp.einsum("bhnic,bhnie->nbhce", k, v)
    kept_NBHA1 = None if since is None else jnp.moveaxis(since[..., -1, :, None], 2, 0)

    def carry(state_BHCE, chunk):
        added_BHCE, kept_BHA1 = chunk
        kept_BHCE = state_BHCE if kept_BHA1 is None else kept_BHA1 * state_BHCE
        return kept_BHCE + added_BHCE, state_BHCE

    state_BHCE, entering_NBHCE = jax.lax.scan(carry, state_BHCE, (added_NBHCE, kept_NBHA1))
    o = o + jnp.einsum("bhnic,nbhce->bhnie", q, entering_NBHCE)
    o_BTHE = jnp.moveaxis(o, 1, 3).reshape(o.shape[0], -1, o.shape[1], o.shape[-1])[:, :T]
    return o_BTHE.astype(q_BTHC.dtype), state_BHCE


def _ungated(q, k, reset, size: int):
    """As `_gated` where a = 1: what a reset lies between has no weight. The factors are None without resets."""
    seen, since, until = jnp.tri(size, dtype=bool)[None, None, None], None, None
    if reset is not None:
        resets = jnp.cumsum(reset[..., 0], axis=-1)  # small whole numbers, exact in float32
        seen = seen & (resets[..., :, None] == resets[..., None, :])
        since = (resets == 0)[..., None].astype(jnp.float32)
        until = (resets == resets[..., -1:])[..., None].astype(jnp.float32)
    return jnp.where(seen, jnp.einsum("bhnic,bhnjc->bhnij", q, k), 0.0), since, until


def _gated(q, k, log_a, size: int):
    """(weights [B, H, N, I, J] of v_j in o_i, decay from the chunk's start to each token, from each token to its end)."""

    def halves(x):
        """[..., I, X] in blocks of h -> left and right blocks [..., I / 2h, h, X]."""
        x = x.reshape(*x.shape[:3], -1, 2, h, x.shape[-1])
        return x[..., 0, :, :], x[..., 1, :, :]

    def join(left, right):
        return jnp.stack([left, right], axis=-3).reshape(*left.shape[:3], size, left.shape[-1])

    per_channel = log_a.shape[-1] > 1
    # Within each block of h tokens: sums of log a from its start to token i inclusive, and from after token j to its end.
    before, after = log_a, jnp.zeros_like(log_a)
    # The weights within each block, [..., blocks, h, h]; a token sees itself undecayed.
    weights = jnp.sum(q * k, axis=-1)[..., None, None] if per_channel else jnp.ones((*log_a.shape[:4], 1, 1))
    h = 1
    while h < size:
        before_left, before_right = halves(before)
        after_left, after_right = halves(after)
        to_i, to_middle = jnp.exp(before_right), jnp.exp(after_left)
        if per_channel:
            crossing = jnp.einsum("...ic,...jc->...ij", halves(q)[1] * to_i, halves(k)[0] * to_middle)
        else:
            crossing = to_i * jnp.swapaxes(to_middle, -1, -2)
        left, right = weights[..., ::2, :, :], weights[..., 1::2, :, :]
        top = jnp.concatenate([left, jnp.zeros_like(left)], axis=-1)
        weights = jnp.concatenate([top, jnp.concatenate([crossing, right], axis=-1)], axis=-2)
        before, after = (
            join(before_left, before_left[..., -1:, :] + before_right),
            join(after_left + before_right[..., -1:, :], after_right),
        )
        h *= 2
    weights = weights[..., 0, :, :]
    if not per_channel:
        weights = weights * jnp.einsum("bhnic,bhnjc->bhnij", q, k)
    return weights, jnp.exp(before), jnp.exp(after)


IMPLS = {"chunk": gated_linear, "reference": gated_linear_reference}
