"""The diagonally gated recurrence of linear attention, RetNet, Mamba-2, GLA and RWKV-6.

    S_t = diag(a_t) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t        a_t in [0, 1], given as log a_t <= 0

or, with a bonus u (RWKV-6; Peng et al. 2024, "Eagle and Finch"), read before the token is added and before its decay, the token
itself weighted per channel:

    o_t = (S_{t-1} + diag(u) k_t v_t^T)^T q_t

B batch, T time, H heads, C key dim, E value dim, N chunks, I and J times within a chunk; A is C for a gate per key channel and
1 for one per head. The heads share q and k in G groups (Mamba-2's B and C): head h reads group h // (H / G). Inside, q and k
have H heads or a single one, which broadcasts, so that products of q and k alone are computed once; several groups are mapped.

The chunked form (Hua et al. 2022; Yang et al. 2023, "Gated linear attention") turns the recurrence into matrix products: pairs
(i, j) within a chunk are weighted by exp(log a_{j+1} + ... + log a_i), and the state carries what lies before the chunk. With
g the cumulative sum of log a, the usual weights exp(g_i) exp(-g_j) overflow for strong gates, and exp(g_i - g_j) loses its
digits to cancellation. Here a chunk is halved again and again: for i in the right and j in the left half of a block, the sum
is (from the middle to i) + (from j to the middle), both of them sums of non-positive terms. No difference is ever taken, in
the gradient neither, so that any gate is safe, also a = 0: that is how a reset enters.

With a bonus the sums end before i. They are the plain form's on k, v and a that lag one token behind q, since the state before
token t is the one after token t - 1: nothing needs to be taken off again.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxeff.core import sequence
from jaxeff.core.errors import lookup
from jaxeff.core.sharding import RULES, Rules
from jaxeff.core.target import platform
from jaxeff.ops.decay import UNIT, by_token, cut, decay, in_half
from jaxeff.ops.pieces import in_pieces, piece

# log a of a reset: exp is 0, and sums of it over any length stay finite, which -inf would not survive times 0 in a gradient.
RESET = -1e30


def gated_linear(
    q_BTGC: jax.Array,
    k_BTGC: jax.Array,
    v_BTHE: jax.Array,
    log_a: jax.Array | None = None,
    state_BHCE: jax.Array | None = None,
    reset_BT: jax.Array | None = None,
    bonus_HC: jax.Array | None = None,
    gain_BTH: jax.Array | None = None,
    skip_H: jax.Array | None = None,
    *,
    impl: str | None = None,
    chunk: int = 64,
    recompute: bool = True,
    mesh=None,
    rules: Rules = RULES,
) -> tuple[jax.Array, jax.Array]:
    """(o_BTHE in q's dtype, final state [B, H, C, E] in float32); computed in float32 throughout, except that for 16-bit q the
    factors of products may be of q's type where matrix units multiply (`ops.decay.in_half`, `ops.pallas`).

    q, k: G divides H. log_a: None (a = 1), [B, T, H] or [B, T, H, C], at most 0. state_BHCE: None is zero. reset_BT: True where
    the state is zeroed before token t, so that with a bonus o_t does not read it either. bonus_HC: u; None is the form without.
    gain_BTH: of v, which is written times its gain (Mamba-2's dt). skip_H: times v, without its gain, is added to o (its D).
    A token with k = 0 and log a = 0 leaves the state as it was.
    impl: "chunk" (default) or "reference". chunk: a power of two; time C + E + chunk per token, memory chunk per token.
    recompute: keep nothing but the arguments between forward and backward, states and weights are computed again; False is for
    callers that wrap more than this in `jax.checkpoint` themselves. A long text without bonus goes by pieces on a CPU, which are
    made again in any case (see `ops.pieces`).
    mesh, rules: over whose devices a kernel spreads rows and heads.

    Raises ValueError for shapes that disagree and a chunk that is no power of two.
    """
    reference = lookup(IMPLS, impl or "chunk", "form of gated_linear") is gated_linear_reference
    if chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f"gated_linear: chunk must be a power of two, found {chunk}")
    run = None if reference or bonus_HC is not None else _kernel(q_BTGC, v_BTHE, log_a, chunk, recompute, mesh, rules)
    if run is None:
        pieces = functools.partial(_pieces, chunk=chunk, recompute=recompute)
        run = _scaled(_scan if reference else _single if q_BTGC.shape[1] == 1 else pieces)
    form = lambda state: _in_groups(run, q_BTGC, k_BTGC, v_BTHE, log_a, state, reset_BT, bonus_HC, gain_BTH, skip_H)
    if not sequence.sliced():
        return form(state_BHCE)
    return _after_slices(form, k_BTGC, v_BTHE, log_a, state_BHCE, reset_BT)


def gated_linear_reference(
    q_BTGC, k_BTGC, v_BTHE, log_a=None, state_BHCE=None, reset_BT=None, bonus_HC=None, gain_BTH=None, skip_H=None
):
    """The recurrence as a scan over time; arguments and results as for `gated_linear`."""
    run = _scaled(_scan)
    return _in_groups(run, q_BTGC, k_BTGC, v_BTHE, log_a, state_BHCE, reset_BT, bonus_HC, gain_BTH, skip_H)


def _after_slices(form, k_BTGC, v_BTHE, log_a, state_BHCE, reset_BT):
    """`form` of the state that the slices before this one leave, and the state after the last slice; see `core.sequence`."""
    (B, _, _, C), (_, _, H, E) = k_BTGC.shape, v_BTHE.shape
    if state_BHCE is None:
        state_BHCE = jnp.zeros((B, H, C, E), jnp.float32)
    log_kept = jnp.zeros((B, H)) if log_a is None else jnp.sum(log_a.astype(jnp.float32), axis=1)
    log_kept = log_kept[..., None] if log_kept.ndim == 2 else log_kept
    return sequence.decaying(form, log_kept[..., None], state_BHCE, reset_BT)


def _in_groups(form, q_BTGC, k_BTGC, v_BTHE, log_a, state_BHCE, reset_BT, bonus_HC, gain_BTH, skip_H):
    """`form`, for which q and k have H heads or one, on all groups; shapes checked, the state in float32."""
    _check(q_BTGC, k_BTGC, v_BTHE, log_a, state_BHCE, reset_BT, bonus_HC, gain_BTH, skip_H)
    (B, _, G, C), (H, E) = q_BTGC.shape, v_BTHE.shape[2:]
    state_BHCE = jnp.zeros((B, H, C, E), jnp.float32) if state_BHCE is None else state_BHCE.astype(jnp.float32)
    args = (q_BTGC, k_BTGC, v_BTHE, log_a, state_BHCE, reset_BT, bonus_HC, gain_BTH, skip_H)
    axes = (2, 2, 2, 2, 1, None, 0, 2, 0)
    if G in (1, H):
        o_BTHE, state_BHCE = form(*args)
    else:

        def split(x, axis):
            return x if x is None or axis is None else x.reshape(*x.shape[:axis], G, -1, *x.shape[axis + 1 :])

        o_BTGRE, state_BGRCE = jax.vmap(form, axes, (2, 1))(*map(split, args, axes))
        o_BTHE = rearrange(o_BTGRE, "b t g r e -> b t (g r) e")
        state_BHCE = rearrange(state_BGRCE, "b g r c e -> b (g r) c e")
    return o_BTHE.astype(q_BTGC.dtype), state_BHCE


def _pieces(q, k, v, log_a, state_BHCE, reset_BT, bonus_HC, chunk: int, recompute: bool):
    """The chunked form, over pieces of a long text where there is no bonus, which would reach from one into the next."""
    T, largest = q.shape[1], max(q[:, 0].size, v[:, 0].size)
    if bonus_HC is None and in_half(q) and (log_a is None or log_a.ndim == 3):
        run = functools.partial(_by_sums, size=min(max(chunk, UNIT), T))
    else:
        run = functools.partial(_chunked if bonus_HC is None else _lagging, size=min(chunk, 1 << (T - 1).bit_length()))
    size = piece(largest, T, chunk) if bonus_HC is None else T
    ordered = lambda q, k, v, log_a, reset_BT, state_BHCE: run(q, k, v, log_a, state_BHCE, reset_BT, bonus_HC)
    return in_pieces(ordered, (q, k, v, log_a, reset_BT), state_BHCE, size, recompute)


def _kernel(q, v, log_a, chunk: int, recompute: bool, mesh, rules: Rules):
    """The form in 16-bit products as TPUs have a kernel for, where it serves; over groups that are mapped it is not spread."""
    if platform() != "tpu" or not in_half(q) or chunk > UNIT or q.shape[2] not in (1, v.shape[2]):
        return None
    from jaxeff.ops.pallas import gated_linear as pallas

    if pallas.why_not(q, v, log_a) is not None:
        return None

    def run(q, k, v, log_a, state, reset_BT, _, gain_BTH, skip_H):
        return pallas.on_each_device(q, k, v, log_a, reset_BT, state, gain_BTH, skip_H, mesh=mesh, rules=rules)

    return jax.checkpoint(run) if recompute else run


def _scaled(run):
    """`run` of values times their gains, and with their own values times `skip` added."""

    def form(q, k, v, log_a, state, reset_BT, bonus_HC, gain_BTH, skip_H):
        v32 = v.astype(jnp.float32)
        o, state = run(q, k, v if gain_BTH is None else gain_BTH[..., None] * v32, log_a, state, reset_BT, bonus_HC)
        own = 0.0 if skip_H is None else skip_H.astype(jnp.float32)[None, None, :, None] * v32
        return o + own, state

    return form


def _check(q_BTGC, k_BTGC, v_BTHE, log_a, state_BHCE, reset_BT, bonus_HC, gain_BTH, skip_H):
    for name, x in {"q": q_BTGC, "v": v_BTHE}.items():
        if x.ndim != 4:
            raise ValueError(f"gated_linear: {name} has shape {x.shape}, expected [batch, time, heads, channels]")
    (B, T, G, C), (H, E) = q_BTGC.shape, v_BTHE.shape[2:]
    expected = {
        "k": (k_BTGC, [(B, T, G, C)]),
        "v": (v_BTHE, [(B, T, H, E)]),
        "log_a": (log_a, [(B, T, H), (B, T, H, C)]),
        "state": (state_BHCE, [(B, H, C, E)]),
        "reset": (reset_BT, [(B, T)]),
        "bonus": (bonus_HC, [(H, C)]),
        "gain": (gain_BTH, [(B, T, H)]),
        "skip": (skip_H, [(H,)]),
    }
    for name, (x, shapes) in expected.items():
        if x is not None and x.shape not in shapes:
            raise ValueError(f"gated_linear: {name} has shape {x.shape}, expected {' or '.join(map(str, shapes))}")
    if H % G:
        raise ValueError(f"gated_linear: v has shape {v_BTHE.shape}, expected a multiple of the {G} heads of q and k")


def _scan(q_BTHC, k_BTHC, v_BTHE, log_a, state_BHCE, reset_BT, bonus_HC):
    """(o_BTHE, state), token by token."""
    tokens_TB = [None if x is None else jnp.moveaxis(x, 1, 0) for x in (q_BTHC, k_BTHC, v_BTHE, log_a, reset_BT)]
    state_BHCE, o_TBHE = jax.lax.scan(functools.partial(_step, bonus_HC), state_BHCE, tokens_TB)
    return jnp.moveaxis(o_TBHE, 0, 1), state_BHCE


def _single(q_BTHC, k_BTHC, v_BTHE, log_a, state_BHCE, reset_BT, bonus_HC):
    """(o_BTHE, state) of the last token alone."""
    token = [None if x is None else x[:, -1] for x in (q_BTHC, k_BTHC, v_BTHE, log_a, reset_BT)]
    state_BHCE, o_BHE = _step(bonus_HC, state_BHCE, token)
    return o_BHE[:, None], state_BHCE


def _with_channels(log_a, v):
    """log a [..., H, A], where v is [..., H, E]; None stays None."""
    return None if log_a is None else log_a.reshape(*v.shape[:-1], -1)


def _step(bonus_HC, state_BHCE, token):
    """One token of the recurrence: (new state, o_BHE)."""
    *token, reset_B = token
    q_BHC, k_BHC, v_BHE, log_a = (None if x is None else x.astype(jnp.float32) for x in token)
    log_a_BHA = _with_channels(log_a, v_BHE)
    if reset_B is not None:
        state_BHCE = jnp.where(reset_B[:, None, None, None], 0.0, state_BHCE)
    kept_BHCE = state_BHCE if log_a_BHA is None else jnp.exp(log_a_BHA)[..., None] * state_BHCE
    new_BHCE = read_BHCE = kept_BHCE + k_BHC[..., None] * v_BHE[:, :, None]
    if bonus_HC is not None:
        read_BHCE = state_BHCE + (bonus_HC.astype(jnp.float32)[None] * k_BHC)[..., None] * v_BHE[:, :, None]
    return new_BHCE, jnp.einsum("bhce,bhc->bhe", read_BHCE, q_BHC)


def _lagging(q, k, v, log_a, state_BHCE, reset_BT, bonus_HC, size: int):
    """The form with a bonus: the chunks on what lags, the token itself, and the last token's step."""

    def lag(x):
        return None if x is None else jnp.pad(x[:, :-1], ((0, 0), (1, 0)) + ((0, 0),) * (x.ndim - 2))

    before = lag(k)
    if reset_BT is not None:
        before = jnp.where(reset_BT[:, :, None, None], 0.0, before)  # a reset forgets the token just before it, too
    o_BTHE, state_BHCE = _chunked(q, before, lag(v), lag(log_a), state_BHCE, reset_BT, None, size)
    _, state_BHCE = _single(q, k, v, log_a, state_BHCE, None, None)
    q, k, v, bonus_HC = (x.astype(jnp.float32) for x in (q, k, v, bonus_HC))
    return o_BTHE + jnp.einsum("bthc,hc->bth", q * k, bonus_HC)[..., None] * v, state_BHCE


def _chunked(q_BTHC, k_BTHC, v_BTHE, log_a, state_BHCE, reset_BT, _, size: int):
    """(o_BTHE, state) without bonus: all chunks at once, but for the scan that carries the state from one to the next."""
    T = q_BTHC.shape[1]

    def cut(x):
        """[B, T, H, X] -> [B, H, N, I, X] in float32, zeros after the end (k = 0, log a = 0: nothing happens there)."""
        if x is None:
            return None
        x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, -T % size), (0, 0), (0, 0)))
        return rearrange(x, "b (n i) h x -> b h n i x", i=size)

    q, k, v, log_a = map(cut, (q_BTHC, k_BTHC, v_BTHE, _with_channels(log_a, v_BTHE)))
    reset = None if reset_BT is None else cut(reset_BT[:, :, None, None])
    if log_a is None:
        weights, since, until = _ungated(q, k, reset, size)
    else:
        weights, since, until = _gated(q, k, log_a if reset is None else jnp.where(reset > 0, RESET, log_a), size)
    o = jnp.einsum("bhnij,bhnje->bhnie", weights, v)
    # Where heads share q and k but no gate, one per head may as well scale their values: q and k stay single.
    by_value = since is not None and since.shape[-1] == 1 and since.shape[1] > q.shape[1]
    if since is not None and not by_value:
        q, k = q * since, k * until
    added_NBHCE = jnp.einsum("bhnic,bhnie->nbhce", k, until * v if by_value else v)
    kept_NBHA1 = None if since is None else jnp.moveaxis(since[..., -1, :, None], 2, 0)

    def carry(state_BHCE, chunk):
        added_BHCE, kept_BHA1 = chunk
        kept_BHCE = state_BHCE if kept_BHA1 is None else kept_BHA1 * state_BHCE
        return kept_BHCE + added_BHCE, state_BHCE

    state_BHCE, entering_NBHCE = jax.lax.scan(carry, state_BHCE, (added_NBHCE, kept_NBHA1))
    read = jnp.einsum("bhnic,nbhce->bhnie", q, entering_NBHCE)
    o = o + (since * read if by_value else read)
    return rearrange(o, "b h n i e -> b (n i) h e")[:, :T], state_BHCE


def _by_sums(q_BTHC, k_BTHC, v_BTHE, log_a_BTH, state_BHCE, reset_BT, _, size: int):
    """(o_BTHE, state) without bonus, for one gate a head, in 16-bit products: as `_chunked`, with the decays of `ops.decay`."""
    T, half = q_BTHC.shape[1], q_BTHC.dtype
    f32 = {"preferred_element_type": jnp.float32}
    q, k, v = (cut(x.astype(half), size) for x in (q_BTHC, k_BTHC, v_BTHE))
    H = v.shape[3]
    between, since, until = decay(jnp.zeros(v_BTHE.shape[:3]) if log_a_BTH is None else log_a_BTH, reset_BT, size)

    shared = q.shape[3] == 1
    score = jnp.einsum("bnihc,bnjhc->bnhij", q, k, **f32)  # one for all heads where they share q and k
    o = jnp.einsum("bnhij,bnjhe->bnihe", (score * between).astype(half), v, **f32)
    q, k = (jnp.broadcast_to(x, (*x.shape[:3], H, x.shape[-1])) if not shared else x for x in (q, k))
    scaled = (v * by_token(until).astype(half)).astype(half)
    form = "bnic,bnihe->nbhce" if shared else "bnihc,bnihe->nbhce"
    added_NBHCE = jnp.einsum(form, k[..., 0, :] if shared else k, scaled, **f32)
    kept_NBH = jnp.moveaxis(since[..., -1], 1, 0)

    def carry(state_BHCE, chunk):
        added_BHCE, kept_BH = chunk
        return kept_BH[..., None, None] * state_BHCE + added_BHCE, state_BHCE.astype(half)

    state_BHCE, entering_NBHCE = jax.lax.scan(carry, state_BHCE, (added_NBHCE, kept_NBH))
    form = "bnic,nbhce->bnihe" if shared else "bnihc,nbhce->bnihe"
    read = jnp.einsum(form, q[..., 0, :] if shared else q, entering_NBHCE, **f32)
    o = o + by_token(since) * read
    return rearrange(o, "b n i h e -> b (n i) h e")[:, :T], state_BHCE


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
        return rearrange(x, "... (m two h) x -> two ... m h x", two=2, h=h)

    def join(left, right):
        return rearrange([left, right], "two ... m h x -> ... (m two h) x")

    per_channel = log_a.shape[-1] > 1
    # Within each block of h tokens: sums of log a from its start to token i inclusive, and from after token j to its end.
    before, after = log_a, jnp.zeros_like(log_a)
    # The weights within each block, [..., blocks, h, h]; a token sees itself undecayed.
    weights = jnp.sum(q * k, axis=-1)[..., None, None] if per_channel else jnp.ones((1,) * 6)
    weights = jnp.broadcast_to(weights, (*log_a.shape[:4], 1, 1))
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
