"""The recurrence of the delta rule: DeltaNet, Gated DeltaNet, KDA, DeltaProduct and RWKV-7, by their parameters.

    S_t = (diag(a_t) + u_t w_t^T) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t        a_t in [0, 1], given as log a_t <= 0

B batch, T time, H heads, C key dim, E value dim, N chunks, I and J times within a chunk; A is C for a gate per key channel and
1 for one per head.

The chunked form (Yang et al. 2024, "Parallelizing linear transformers with the delta rule", and its gated successors). What the
state is read for, p_t = w_t^T S_{t-1}, is a second value beside v_t, and u_t its key. In a chunk that the state S enters, with
x.y[i, j] the product of x_i and y_j weighted by the decay between the tokens, rows w up to before i and rows q up to i,

    P = (1 - w.u)^-1 (w S + w.k V)        O = q S + q.u P + q.k V        S' = a S + u^T P + k^T V

w.u is strictly lower triangular; its unit triangular inverse is joined from inverses of its halves, since sums of its powers
lose all digits. Only the states go from chunk to chunk one after the other. Decays are sums of non-positive terms, never
differences, so that any gate is safe, also a = 0: that is how a reset enters.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxeff.core import sequence
from jaxeff.core.errors import lookup
from jaxeff.core.sharding import RULES, Rules
from jaxeff.core.target import platform
from jaxeff.ops.decay import UNIT, in_half
from jaxeff.ops.delta_sums import by_sums
from jaxeff.ops.pieces import in_pieces, piece

# log a of a reset: exp is 0, and sums of it over any length stay finite, which -inf would not survive times 0 in a gradient.
RESET = -1e30


def delta_rule(
    q_BTHC: jax.Array,
    k_BTHC: jax.Array,
    v_BTHE: jax.Array,
    u_BTHC: jax.Array,
    w_BTHC: jax.Array,
    log_a: jax.Array | None = None,
    state_BHCE: jax.Array | None = None,
    reset_BT: jax.Array | None = None,
    *,
    impl: str | None = None,
    chunk: int = 32,
    recompute: bool = True,
    mesh=None,
    rules: Rules = RULES,
) -> tuple[jax.Array, jax.Array]:
    """(o_BTHE in q's dtype, final state [B, H, C, E] in float32); computed in float32 throughout, except that for 16-bit v and no
    gate per channel the factors of products may be of v's type where matrix units multiply (`ops.delta_sums`, `ops.pallas`).

    log_a: None (a = 1), [B, T, H] or [B, T, H, C], at most 0. state_BHCE: None is zero. reset_BT: True where the state is zeroed
    before token t. A token with k = 0, u = 0 and log a = 0 leaves the state as it was. The plain delta rule is k = beta k,
    u = -beta k, w = k; with a gate, w = a k.
    impl: "chunk" (default) or "reference". chunk: a power of two; time C + E + chunk per token, memory C E / chunk + chunk.
    recompute: keep nothing but the arguments between forward and backward, False is for callers that wrap more than this in
    `jax.checkpoint` themselves. A long text goes by pieces on a CPU, which are made again in any case (see `ops.pieces`).
    mesh, rules: over whose devices a kernel spreads rows and heads.

    Raises ValueError for shapes that disagree and a chunk that is no power of two.
    """
    form = lookup(IMPLS, impl or "chunk", "form of delta_rule")
    if chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f"delta_rule: chunk must be a power of two, found {chunk}")
    _check(q_BTHC, k_BTHC, v_BTHE, u_BTHC, w_BTHC, log_a, state_BHCE, reset_BT)
    B, T, H, C = q_BTHC.shape
    if state_BHCE is None:
        state_BHCE = jnp.zeros((B, H, C, v_BTHE.shape[-1]), jnp.float32)
    if form is delta_rule_reference or T == 1:
        run = _scan
    else:
        run = functools.partial(_pieces, chunk=chunk, recompute=recompute, mesh=mesh, rules=rules)
    form = lambda v_BTHE, state_BHCE: run(q_BTHC, k_BTHC, v_BTHE, u_BTHC, w_BTHC, log_a, reset_BT, state_BHCE)  # noqa: E731
    of_text = functools.partial(_after_slices, form) if sequence.sliced() else form
    o_BTHE, state_BHCE = of_text(v_BTHE, state_BHCE.astype(jnp.float32))
    return o_BTHE.astype(q_BTHC.dtype), state_BHCE


def delta_rule_reference(q_BTHC, k_BTHC, v_BTHE, u_BTHC, w_BTHC, log_a=None, state_BHCE=None, reset_BT=None):
    """The recurrence as a scan over time; arguments and results as for `delta_rule`."""
    return delta_rule(q_BTHC, k_BTHC, v_BTHE, u_BTHC, w_BTHC, log_a, state_BHCE, reset_BT, impl="reference")


def _after_slices(form, v_BTHE, state_BHCE):
    """`form` of the state that the slices before this one leave, and the state after the last slice; see `core.sequence`.

    It is linear in values and state: C more of them, which start as the unit matrix and to which nothing is added, find what
    the slice makes of any state before it and what its tokens read of that.
    """
    B, T, H, _ = v_BTHE.shape
    C = state_BHCE.shape[2]
    unit_BHCC = jnp.broadcast_to(jnp.eye(C)[None, None], (B, H, C, C))
    empty_BHCE = jnp.zeros_like(state_BHCE)
    o, after = form(_beside(jnp.zeros((B, T, H, C), v_BTHE.dtype), v_BTHE), _beside(unit_BHCC, empty_BHCE))
    (read_BTHC, o_BTHE), own = (tuple(jnp.split(x, [C], axis=-1)) for x in (o, after))
    state_BHCE = _mapped(sequence.before(own, _then, (unit_BHCC, empty_BHCE)), state_BHCE)
    o_BTHE = o_BTHE + jnp.einsum("bthc,bhce->bthe", read_BTHC, state_BHCE)
    return o_BTHE, sequence.last(_mapped(own, state_BHCE))


def _mapped(map_, state_BHCE):
    """M S + B of the state S, for the map (M, B)."""
    M_BHCC, B_BHCE = map_
    return M_BHCC @ state_BHCE + B_BHCE


def _then(earlier, later):
    """The map that applies one after the other."""
    return later[0] @ earlier[0], _mapped(later, earlier[1])


def _check(q_BTHC, k_BTHC, v_BTHE, u_BTHC, w_BTHC, log_a, state_BHCE, reset_BT):
    for name, x in {"q": q_BTHC, "v": v_BTHE}.items():
        if x.ndim != 4:
            raise ValueError(f"delta_rule: {name} has shape {x.shape}, expected [batch, time, heads, channels]")
    (B, T, H, C), E = q_BTHC.shape, v_BTHE.shape[-1]
    expected = {
        "k": (k_BTHC, [(B, T, H, C)]),
        "v": (v_BTHE, [(B, T, H, E)]),
        "u": (u_BTHC, [(B, T, H, C)]),
        "w": (w_BTHC, [(B, T, H, C)]),
        "log_a": (log_a, [(B, T, H), (B, T, H, C)]),
        "state": (state_BHCE, [(B, H, C, E)]),
        "reset": (reset_BT, [(B, T)]),
    }
    for name, (x, shapes) in expected.items():
        if x is not None and x.shape not in shapes:
            raise ValueError(f"delta_rule: {name} has shape {x.shape}, expected {' or '.join(map(str, shapes))}")


def _with_channels(log_a, q):
    """log a [..., H, A], where q is [..., H, C]; None stays None."""
    return None if log_a is None else log_a.reshape(*q.shape[:-1], -1)


def _pieces(
    q_BTHC, k_BTHC, v_BTHE, u_BTHC, w_BTHC, log_a, reset_BT, state_BHCE, *, chunk: int, recompute: bool, **spread
):
    """The chunked form, over pieces of a long text; arguments as for `_scan`. spread: mesh and rules."""
    B, T, H, C = q_BTHC.shape
    if in_half(v_BTHE) and (log_a is None or log_a.ndim == 3):
        run = _in_half(q_BTHC, v_BTHE, log_a, chunk, **spread)
    else:
        run = functools.partial(_chunked, size=min(chunk, 1 << (T - 1).bit_length()))
    arrays = (q_BTHC, k_BTHC, v_BTHE, u_BTHC, w_BTHC, log_a, reset_BT)
    return in_pieces(run, arrays, state_BHCE, piece(B * H * C, T, chunk), recompute)


def _in_half(q_BTHC, v_BTHE, log_a, chunk: int, **spread):
    """The form in 16-bit products: TPUs have a kernel for most shapes."""
    if platform() == "tpu" and chunk <= UNIT:
        from jaxeff.ops.pallas import delta_rule as kernel

        if kernel.why_not(q_BTHC, v_BTHE, log_a) is None:
            return functools.partial(kernel.on_each_device, **spread)
    return functools.partial(by_sums, size=min(max(chunk, UNIT), q_BTHC.shape[1]))


def _scan(q_BTHC, k_BTHC, v_BTHE, u_BTHC, w_BTHC, log_a, reset_BT, state_BHCE):
    """(o_BTHE, state), token by token."""

    def step(state_BHCE, token):
        *token, reset_B = token
        q_BHC, k_BHC, v_BHE, u_BHC, w_BHC, log_a_BHA = (None if x is None else x.astype(jnp.float32) for x in token)
        if reset_B is not None:
            state_BHCE = jnp.where(reset_B[:, None, None, None], 0.0, state_BHCE)
        p_BHE = jnp.einsum("bhc,bhce->bhe", w_BHC, state_BHCE)
        kept_BHCE = state_BHCE if log_a_BHA is None else jnp.exp(log_a_BHA)[..., None] * state_BHCE
        new_BHCE = kept_BHCE + u_BHC[..., None] * p_BHE[:, :, None] + k_BHC[..., None] * v_BHE[:, :, None]
        return new_BHCE, jnp.einsum("bhce,bhc->bhe", new_BHCE, q_BHC)

    tokens = (q_BTHC, k_BTHC, v_BTHE, u_BTHC, w_BTHC, _with_channels(log_a, q_BTHC), reset_BT)
    tokens_TB = [None if x is None else jnp.moveaxis(x, 1, 0) for x in tokens]
    state_BHCE, o_TBHE = jax.lax.scan(step, state_BHCE, tokens_TB)
    return jnp.moveaxis(o_TBHE, 0, 1), state_BHCE


def _chunked(q_BTHC, k_BTHC, v_BTHE, u_BTHC, w_BTHC, log_a, reset_BT, state_BHCE, size: int):
    """(o_BTHE, state): products within all chunks at once, and a scan over the chunks."""
    T = q_BTHC.shape[1]

    def cut(x):
        """[B, T, H, X] -> [N, B, H, I, X] in float32, zeros after the end (k = u = 0, log a = 0: nothing happens there)."""
        x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, -T % size), (0, 0), (0, 0)))
        return rearrange(x, "b (n i) h x -> n b h i x", i=size)

    q, k, v, u, w = map(cut, (q_BTHC, k_BTHC, v_BTHE, u_BTHC, w_BTHC))
    gate = None if log_a is None else cut(jnp.maximum(_with_channels(log_a, q_BTHC), RESET))
    if reset_BT is not None:
        reset = cut(reset_BT[:, :, None, None]) > 0
        w = jnp.where(reset, 0.0, w)
        gate = jnp.where(reset, RESET, jnp.zeros_like(w[..., :1]) if gate is None else gate)
    products = _by_head if gate is None or gate.shape[-1] == 1 else _by_channel
    o, state_BHCE = _chunks(*products((w, q), (u, k), gate), v, state_BHCE)
    return rearrange(o, "n b h i e -> b (n i) h e")[:, :T], state_BHCE


def _turned(x):
    return jnp.swapaxes(x, -1, -2)


def _by_head(rows, cols, log_a):
    """For rows (w, q) and columns (u, k) [N, B, H, I, C] with one gate a head, or none:

    their products weighted by the decay between them, ((w.u, w.k), (q.u, q.k)) [N, B, H, I, J]; the rows decayed from the chunk's
    start, the columns to its end, and what is kept of the state, [N, B, H, A, 1], None for all.
    """
    size = rows[0].shape[-2]
    through = (jnp.arange(size)[:, None] >= jnp.arange(size)[None])[None, None, None]  # at or after
    if log_a is None:
        between = (_before(through.astype(jnp.float32)), through.astype(jnp.float32))
        return _weighted(rows, cols, between), rows, cols, None
    # Sums from after j to i, from the start in the first column: of terms of one sign, as a product with a triangle of ones.
    ones, terms = through[0, 0, 0].astype(jnp.float32), jnp.where(through, log_a, 0.0)
    sums = jnp.einsum("it,...tj->...ij", ones, terms, precision="highest")
    to_i = jnp.exp(sums[..., :1])
    q_between = jnp.where(through, jnp.exp(jnp.concatenate([sums[..., 1:], jnp.zeros_like(to_i)], axis=-1)), 0.0)
    A = _weighted(rows, cols, (_before(q_between), q_between))
    w, q = rows[0] * _before(to_i, 1.0), rows[1] * to_i
    to_end = _turned(q_between[..., -1:, :])
    return A, (w, q), tuple(x * to_end for x in cols), to_i[..., -1:, :]


def _before(x, start: float = 0.0):
    """Rows of the token before each: what rows w see, which read the state before the token."""
    return jnp.pad(x[..., :-1, :], ((0, 0),) * (x.ndim - 2) + ((1, 0), (0, 0)), constant_values=start)


def _weighted(rows, cols, between):
    return tuple(tuple(x @ _turned(y) * weight for y in cols) for x, weight in zip(rows, between, strict=True))


def _halves(x, h: int):
    """The left and the right halves of blocks of 2 h tokens: [..., I, X] -> [..., I / 2h, h, X] each."""
    x = x.reshape(*x.shape[:-2], -1, 2, h, x.shape[-1])
    return x[..., 0, :, :], x[..., 1, :, :]


def _joined(left, right):
    """The inverse of `_halves`."""
    x = jnp.stack([left, right], axis=-3)
    return x.reshape(*x.shape[:-4], -1, x.shape[-1])


def _levels(log_a):
    """Sums of log a by halving: [(h, from the start of a right half to i for rows w and q, from after j to the end of a left half)]
    and, for the whole chunk, both. Those of rows w and q stand beside each other, [..., I, 2C]."""
    w_before, q_before, after = jnp.zeros_like(log_a), log_a, jnp.zeros_like(log_a)
    levels, h = [], 1
    while h < log_a.shape[-2]:
        (w_left, w_right), (q_left, q_right), (left, right) = (_halves(x, h) for x in (w_before, q_before, after))
        levels.append((h, _beside(w_right, q_right), left))
        to_middle, from_middle = q_left[..., -1:, :], q_right[..., -1:, :]
        w_before, q_before = _joined(w_left, to_middle + w_right), _joined(q_left, to_middle + q_right)
        after = _joined(left + from_middle, right)
        h *= 2
    return levels, _beside(w_before, q_before), after


def _beside(x, y):
    """Channels of two [..., I, C] and [..., I, E] as [..., I, C + E]."""
    return jnp.concatenate([x, y], axis=-1)


def _apart(x):
    """The inverse of `_beside`."""
    return jnp.split(x, 2, axis=-1)


def _under(x):
    """[..., I, 2C] -> [..., 2I, C]: a token's two rows, one under the other."""
    return x.reshape(*x.shape[:-2], 2 * x.shape[-2], -1)


def _along(x):
    """The inverse of `_under`."""
    return x.reshape(*x.shape[:-2], x.shape[-2] // 2, -1)


def _blocks(upper_lower, crossing):
    """Pairs of blocks [..., m, h, h] and what lies below the first of each -> blocks of 2 h."""
    upper, lower = upper_lower[..., ::2, :, :], upper_lower[..., 1::2, :, :]
    upper = jnp.concatenate([upper, jnp.zeros_like(upper)], axis=-1)
    return jnp.concatenate([upper, jnp.concatenate([crossing, lower], axis=-1)], axis=-2)


@jax.custom_vjp
def _by_channel(rows, cols, log_a):
    """`_by_head` with a gate per channel, [..., I, C]: for i in the right and j in the left half of a block, the decay is that from
    the middle to i times that from j to the middle. All four products are one, of rows (w_1, q_1, w_2, ...) and columns (u_1,
    k_1, u_2, ...)."""
    (q, size), (levels, before, after) = (rows[1], log_a.shape[-2]), _levels(log_a)
    rows, cols = _beside(*rows), _beside(*cols)
    own = jnp.sum(q[..., None, :] * cols.reshape(*q.shape[:-1], 2, -1), axis=-1)  # a token reads itself by q alone
    A = jnp.stack([jnp.zeros_like(own), own], axis=-2)
    for h, to_i, to_middle in levels:
        right, left = _scaled(rows, cols, h, to_i, to_middle)
        A = _blocks(A, right @ _turned(left))
    A = A.reshape(*q.shape[:-2], size, 2, size, 2)
    A = tuple(tuple(A[..., x, :, y] for y in (0, 1)) for x in (0, 1))
    rows, cols = rows * jnp.exp(before), cols * _twice(jnp.exp(after))
    return A, tuple(_apart(rows)), tuple(_apart(cols)), jnp.exp(_turned(_apart(before)[1][..., -1:, :]))


def _twice(x):
    return _beside(x, x)


def _scaled(rows, cols, h: int, to_i, to_middle):
    """Rows of right halves decayed from the middle, columns of left halves to the middle, [..., 2h, C] of a block each."""
    right, left = _halves(rows, h)[1] * jnp.exp(to_i), _halves(cols, h)[0] * _twice(jnp.exp(to_middle))
    return _under(right), _under(left)


def _by_channel_forward(rows, cols, log_a):
    return _by_channel(rows, cols, log_a), (rows, cols, log_a)


def _by_channel_backward(arguments, gradients):
    """From the whole chunk down to single tokens. Gradients of sums over a block are pushed down to those over its halves; what
    arrives at single tokens, of q's sums, is log a's."""
    (rows, cols, log_a), (dA, drows, dcols, dkept) = arguments, gradients
    levels, before, after = _levels(log_a)
    (q, k), size = (rows[1], cols), log_a.shape[-2]
    rows, cols, decay, to_end = _beside(*rows), _beside(*cols), jnp.exp(before), _twice(jnp.exp(after))
    drows, dcols = _beside(*drows) * decay, _beside(*dcols) * to_end
    dkept = _turned(dkept) * _apart(decay)[1][..., -1:, :]
    dbefore = drows * rows + _last(_beside(jnp.zeros_like(dkept), dkept), size)
    dafter = sum(_apart(dcols * cols))
    dA = jnp.stack([jnp.stack(d, axis=-1) for d in dA], axis=-3)  # [..., I, w or q, J, u or k]
    dA = dA.reshape(*q.shape[:-2], 1, 2 * size, 2 * size)
    for h, to_i, to_middle in reversed(levels):
        right, left = _scaled(rows, cols, h, to_i, to_middle)
        crossing, dA = dA[..., 2 * h :, : 2 * h], _diagonal(dA, 2 * h)
        zero, wide = jnp.zeros_like(to_middle), jnp.zeros_like(to_i)
        dright, dleft = crossing @ left, _turned(crossing) @ right
        new_rows, new_cols = _along(dright) * jnp.exp(to_i), _along(dleft) * _twice(jnp.exp(to_middle))
        drows, dcols = drows + _joined(wide, new_rows), dcols + _joined(new_cols, wide)
        # before = (left, the total of left + right), after = (left + the total of right, right); totals are last sums of q.
        of_left = sum(_apart(jnp.sum(_halves(dbefore, h)[1], axis=-2, keepdims=True)))
        of_right = jnp.sum(_halves(dafter, h)[0], axis=-2, keepdims=True)
        totals = [_last(_beside(jnp.zeros_like(x), x), h) for x in (of_left, of_right)]
        dbefore = dbefore + _joined(totals[0], _along(dright * right) + totals[1])
        dafter = dafter + _joined(sum(_apart(_along(dleft * left))), zero)
    own = dA[..., 1, :].reshape(*q.shape[:-1], 2)  # [..., I, u or k]
    own = (own[..., :1], own[..., 1:])
    dw, dq = _apart(drows)
    dq = dq + own[0] * k[0] + own[1] * k[1]
    dcols = tuple(d + a * q for d, a in zip(_apart(dcols), own, strict=True))
    return (dw, dq), dcols, _apart(dbefore)[1]


def _last(x, h: int):
    """[..., 1, X] in the last of h places [..., h, X], zeros in the others."""
    return jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((h - 1, 0), (0, 0)))


def _diagonal(x, h: int):
    """The two blocks of size h on the diagonal of each block of 2 h: [..., m, 2h, 2h] -> [..., 2m, h, h]."""
    x = jnp.stack([x[..., :h, :h], x[..., h:, h:]], axis=-3)
    return x.reshape(*x.shape[:-4], -1, h, h)


_by_channel.defvjp(_by_channel_forward, _by_channel_backward)


def _inverse(A):
    """(1 - A)^-1 for strictly lower triangular A [..., I, I]: inverses of blocks of 2, joined to blocks of 4, 8, ..."""
    size = A.shape[-1]
    if size == 1:
        return jnp.ones_like(A)

    def diagonal(h):
        """The blocks of size h on the diagonal, [..., I / h, h, h]."""
        return jnp.stack([A[..., m : m + h, m : m + h] for m in range(0, size, h)], axis=-3)

    two = diagonal(2)
    h, X = 2, two + jnp.broadcast_to(jnp.eye(2, dtype=A.dtype), two.shape)
    while h < size:
        X = _blocks(X, X[..., 1::2, :, :] @ diagonal(2 * h)[..., h:, :h] @ X[..., ::2, :, :])
        h *= 2
    return X[..., 0, :, :]


@jax.custom_vjp
def _chunks(A, rows, cols, kept, v, state):
    """(o [N, B, H, I, E], state): the equations at the head of this file, from the products of all chunks."""
    return _chunks_forward(A, rows, cols, kept, v, state)[0]


def _chunks_forward(A, rows, cols, kept, v, state):
    ((wu, wk), (qu, qk)), (w, q), (u, k) = A, rows, cols
    inverse, wkv, kv = _inverse(wu), wk @ v, _turned(k) @ v

    def step(state, chunk):
        w, u, kept, inverse, wkv, kv = chunk
        p = inverse @ (w @ state + wkv)
        new = (state if kept is None else kept * state) + _turned(u) @ p + kv
        return new, (state, p)

    final, (entering, p) = jax.lax.scan(step, state, (w, u, kept, inverse, wkv, kv))
    return (q @ entering + qu @ p + qk @ v, final), (A, rows, cols, kept, v, inverse, p, entering)


def _chunks_backward(residuals, gradients):
    (A, rows, cols, kept, v, inverse, p, entering), (do, dfinal) = residuals, gradients
    ((_, wk), (qu, qk)), (w, q), (u, k) = A, rows, cols
    from_o, by_q = _turned(qu) @ do, _turned(q) @ do

    def step(dstate, chunk):
        w, u, kept, inverse, from_o, by_q = chunk
        dread = _turned(inverse) @ (from_o + u @ dstate)
        return (dstate if kept is None else kept * dstate) + _turned(w) @ dread + by_q, (dstate, dread)

    dstart, (dstate, dread) = jax.lax.scan(step, dfinal, (w, u, kept, inverse, from_o, by_q), reverse=True)
    dkept = None
    if kept is not None:
        dkept = jnp.sum(dstate * entering, axis=(-2, -1) if kept.shape[-2] == 1 else -1, keepdims=True)
    dA = tuple(tuple(d @ _turned(x) for x in (p, v)) for d in (dread, do))
    dv = _turned(qk) @ do + k @ dstate + _turned(wk) @ dread
    drows, dcols = tuple(d @ _turned(entering) for d in (dread, do)), tuple(x @ _turned(dstate) for x in (p, v))
    return dA, drows, dcols, dkept, dv, dstart


_chunks.defvjp(_chunks_forward, _chunks_backward)

IMPLS = {"chunk": delta_rule, "reference": delta_rule_reference}
