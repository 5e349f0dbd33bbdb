"""The chunked form of the delta rule with one gate a head or none, as a Mosaic kernel for TPUs.

The equations are those of `ops.delta_rule`, what is computed that of `ops.delta_sums`: factors of products have v's 16 bits, sums
and the state are float32. A chunk of 128 tokens of G heads is one step of the grid; chunks come one after the other, and the state
that goes from one to the next lies in the chip's vector memory, as does all that stands between arguments and results. The
backward kernel goes from the last chunk to the first; it reads again the states that entered chunks, (1 - w.u)^-1, and p.

The compiler's schedule for a v5e, B 4, T 2048, H 16, C = E = 128: a step of 8 heads is 9493 cycles forward and 9710 backward, 0.81
and 0.83 ms of all 128 steps at 1.5 GHz, of which matrix units multiply 0.61 and 0.61 (28 products of 128 x 128 x 128 a head and
chunk each); the XLA program of `delta_sums` is planned to take 9.3 and 12.7 ms. `ops.pallas.chunks` says how to count again.

B batch, T time, H heads, G heads of a step, C key dim, E value dim, N chunks, I and J times within a chunk, R rows of numbers that
tokens have beside their vectors.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxeff.core.sharding import RULES, Rules
from jaxeff.core.target import kernel_scope
from jaxeff.ops.pallas import chunks
from jaxeff.ops.pallas.chunks import (
    CHUNK,
    LANES,
    NEVER,
    Block,
    cols_by_cols,
    heads_of_a_step,
    mul,
    places,
    rows_by_rows,
)

BLOCK = 16  # tokens of the blocks that are inverted by substitution


def why_not(q_BTHC: jax.Array, v_BTHE: jax.Array, log_a: jax.Array | None) -> str | None:
    """Why the kernel cannot serve a call, or None."""
    return chunks.why_not(q_BTHC, v_BTHE, log_a, v_BTHE.dtype)


def by_kernel(q_BTHC, k_BTHC, v_BTHE, u_BTHC, w_BTHC, log_a_BTH, reset_BT, state_BHCE, *, interpret: bool = False):
    """(o_BTHE rounded to v's type, state [B, H, C, E]), both in float32; arguments as for `delta_sums.by_sums`. interpret: run on
    any machine, slowly."""
    (B, T, H, C), E, half = q_BTHC.shape, v_BTHE.shape[-1], v_BTHE.dtype
    G = heads_of_a_step(H, C, E)
    if reset_BT is not None:
        w_BTHC = jnp.where(reset_BT[:, :, None, None], 0.0, w_BTHC)

    def heads_first(x_BTHX):
        """[B, H, T, X], zeros after the end (k = u = 0, log a = 0: nothing happens there)."""
        return jnp.pad(x_BTHX.astype(half), ((0, 0), (0, -T % CHUNK), (0, 0), (0, 0))).swapaxes(1, 2)

    arrays = [heads_first(x) for x in (q_BTHC, k_BTHC, v_BTHE, u_BTHC, w_BTHC)]
    rows = chunks.gate_rows(log_a_BTH, reset_BT, (B, T, H), G, before=True)
    with kernel_scope(B * H * -(-T // CHUNK) * flops_of_a_chunk(C, E), LANES):
        o_BHTE, state_BHCE = _recurrence(*arrays, rows, state_BHCE.astype(jnp.float32), interpret)
    return o_BHTE.swapaxes(1, 2)[:, :T].astype(jnp.float32), state_BHCE


def on_each_device(*arrays, mesh=None, rules: Rules = RULES, interpret: bool = False):
    """`by_kernel(*arrays)` by each device of the mesh for its rows and heads."""
    run = functools.partial(by_kernel, interpret=interpret)
    kinds = (*("tokens",) * 6, "rows", "state")
    return chunks.on_each_device(run, arrays, kinds, arrays[0].shape[:3], mesh, rules)


def flops_of_a_chunk(C: int, E: int) -> int:
    """FLOPs of all products of one head's chunk, forward."""
    levels = CHUNK.bit_length() - BLOCK.bit_length()
    inverse = 2 * (CHUNK // 2) * CHUNK**2 * 4 * 2 * levels + 4 * BLOCK**2 * CHUNK**2
    return inverse + 2 * CHUNK * (4 * CHUNK * C + 4 * C * E + 4 * CHUNK * E)


class Gates(NamedTuple):
    """`ops.decay.Decay` of one head's chunk, for rows q and for rows w, which see what is before their token."""

    q_between: jax.Array  # [I, J]
    w_between: jax.Array
    q_since: jax.Array  # [I, 1]
    w_since: jax.Array
    until: jax.Array
    kept: jax.Array  # [1, 1]


def _gates(rows_RI, G: int) -> Gates:
    """Of G heads, [G, ...]."""
    cols_IR = rows_RI.T
    of_token = lambda first: jnp.stack([cols_IR[:, first + g : first + g + 1] for g in range(G)])  # noqa: E731
    sums, before, sums_row = of_token(0), of_token(G), jnp.stack([rows_RI[g : g + 1] for g in range(G)])
    resets_row = rows_RI[2 * G : 2 * G + 1]
    resets, resets_before = cols_IR[:, 2 * G : 2 * G + 1], cols_IR[:, 2 * G + 1 : 2 * G + 2]
    i, j = places(0), places(1)
    weight = lambda same, log: jnp.exp(jnp.where(same[None], log, NEVER))  # noqa: E731
    last = sums[:, -1:]
    since = weight(resets == 0, sums)
    return Gates(
        weight((i >= j) & (resets == resets_row), sums - sums_row),
        weight((i > j) & (resets_before == resets_row), before - sums_row),
        since,
        weight(resets_before == 0, before),
        weight(resets == resets[-1:], last - sums),
        since[:, -1:],
    )


def _same(i, j, h: int):
    """Whether places are in the same block of h, a power of two."""
    return (i ^ j) < h


def _parts(x):
    """x as a sum of two 16-bit numbers, to 2^-17."""
    high = x.astype(jnp.bfloat16)
    return high, (x - high.astype(jnp.float32)).astype(jnp.bfloat16)


def _exact(x, y):
    """x y, to some 2^-17 of each factor. Both parts of x are rows of one product."""
    (x_high, x_low), (y_high, y_low) = _parts(x), _parts(y)
    parts = jnp.concatenate([x_high, x_low])
    of_high, of_low = (mul(parts, part).reshape(2, *x.shape) for part in (y_high, y_low))
    return of_high[0] + (of_high[1] + of_low[0] + of_low[1])


def _inverse(A):
    """(1 - A)^-1 of strictly lower triangular A [I, I]: blocks of 16 on the diagonal by substitution, joined to blocks twice as
    large by products, of the rows alone in which something is joined."""
    i, j = places(0), places(1)
    X = _block_inverses(A)
    h = BLOCK
    while h < CHUNK:
        lower = lambda x: x.reshape(-1, 2, h, CHUNK)[:, 1].reshape(-1, CHUNK)  # noqa: E731, B023
        crossing = jnp.where(_same(i, j, 2 * h) & ~_same(i, j, h), A, 0.0)
        joined = _among_lower(_exact(lower(crossing), X), h)
        X = X + _among_lower(_exact(lower(X), joined), h)
        h *= 2
    return X


def _among_lower(x, h: int):
    """Rows of the lower halves of blocks of 2 h, zeros in the upper ones: [I / 2, J] -> [I, J]."""
    x = x.reshape(-1, 1, h, CHUNK)
    return jnp.concatenate([jnp.zeros_like(x), x], axis=1).reshape(CHUNK, CHUNK)


def _block_inverses(A):
    """The inverses of blocks on the diagonal, [I, I]. All blocks stand side by side in [BLOCK, I]; X's rows below j gain A's column
    j times X's row j. Products with blocks of ones spread columns over their blocks."""
    i, j = places(0), places(1)
    same = _same(i, j, BLOCK)
    compact = jnp.where(same, A, 0.0).reshape(-1, BLOCK, CHUNK).sum(0)
    column = places(1, (BLOCK, CHUNK)) & (BLOCK - 1)
    columns = jnp.concatenate([jnp.where(column == m, compact, 0.0) for m in range(BLOCK)])
    ones = jnp.where(same, 1.0, 0.0)
    spread = sum(mul(part, ones) for part in _parts(columns)).reshape(BLOCK, BLOCK, CHUNK)
    X = jnp.where(column == places(0, (BLOCK, CHUNK)), 1.0, 0.0)
    for m in range(BLOCK - 1):
        X = X + spread[m] * X[m : m + 1]
    return jnp.where(same, jnp.concatenate([X] * (CHUNK // BLOCK)), 0.0)


def _forward_chunk(q, k, v, u, w, gates: Gates, state):
    """(o, state, inverse, p) of one head's chunk."""
    inverse = _inverse(rows_by_rows(w, u) * gates.w_between).astype(v.dtype)
    wk, qu, qk = (rows_by_rows(x, y) for x, y in ((w, k), (q, u), (q, k)))
    wk, qu, qk = wk * gates.w_between, qu * gates.q_between, qk * gates.q_between
    p = mul(inverse, gates.w_since * mul(w, state) + mul(wk, v)).astype(v.dtype)
    o = gates.q_since * mul(q, state) + mul(qu, p) + mul(qk, v)
    state = gates.kept * state + cols_by_cols(_wide(u) * gates.until, p) + cols_by_cols(_wide(k) * gates.until, v)
    return o.astype(v.dtype), state, inverse, p


def _wide(x):
    return x.astype(jnp.float32)


def _backward_chunk(q, k, v, u, w, gates: Gates, entering, inverse, p, do, dstate):
    """Gradients of one head's chunk: (dq, dk, dv, du, dw, dsums along I, dsums [I, 1], dbefore [I, 1], dstate)."""
    wu, wk, qu, qk = (rows_by_rows(x, y) for x, y in ((w, u), (w, k), (q, u), (q, k)))
    wu, wk, qu, qk = wu * gates.w_between, wk * gates.w_between, qu * gates.q_between, qk * gates.q_between
    dread = cols_by_cols(inverse, cols_by_cols(qu, do) + gates.until * mul(u, dstate))
    dv = cols_by_cols(qk, do) + cols_by_cols(wk, dread) + gates.until * mul(k, dstate)
    dwu, dwk, dqu, dqk = (rows_by_rows(x, y) for x, y in ((dread, p), (dread, v), (do, p), (do, v)))
    q_gate, w_gate = dqu * qu + dqk * qk, dwu * wu + dwk * wk
    dwu, dwk, dqu, dqk = dwu * gates.w_between, dwk * gates.w_between, dqu * gates.q_between, dqk * gates.q_between
    dq, dw = gates.q_since * rows_by_rows(do, entering), gates.w_since * rows_by_rows(dread, entering)
    du, dk = gates.until * rows_by_rows(p, dstate), gates.until * rows_by_rows(v, dstate)
    along = lambda x: jnp.sum(x, axis=1, keepdims=True)  # noqa: E731
    ended = along(_wide(u) * du + _wide(k) * dk)
    to_last = jnp.sum(ended, axis=0, keepdims=True) + gates.kept * along(
        jnp.sum(dstate * _wide(entering), axis=0, keepdims=True)
    )
    dsums = along(q_gate) + along(_wide(q) * dq) - ended
    dsums = dsums + jnp.where(places(0, dsums.shape) == CHUNK - 1, to_last, 0.0)
    dbefore = along(w_gate) + along(_wide(w) * dw)
    dsums_row = -jnp.sum(q_gate + w_gate, axis=0, keepdims=True)
    dstate = gates.kept * dstate + cols_by_cols(q, gates.q_since * _wide(do)) + cols_by_cols(w, gates.w_since * dread)
    dq, dw = dq + mul(dqu, u) + mul(dqk, k), dw + mul(dwu, u) + mul(dwk, k)
    du, dk = du + cols_by_cols(dqu, q) + cols_by_cols(dwu, w), dk + cols_by_cols(dqk, q) + cols_by_cols(dwk, w)
    return (*(x.astype(v.dtype) for x in (dq, dk, dv, du, dw)), dsums_row, dsums, dbefore, dstate)


def _forward_kernel(q, k, v, u, w, rows, state, o, final, *kept):
    """final's block stays where it is from chunk to chunk: it holds the state. kept: what the backward kernel reads."""
    G = q.shape[1]

    @pl.when(pl.program_id(2) == 0)
    def _():
        final[...] = state[...]

    if kept:
        kept[0][0, :, 0] = final[0].astype(jnp.bfloat16)
    gates = _gates(rows[0, 0, 0], G)
    o[0], final[0], *results = jax.vmap(_forward_chunk)(*(x[0] for x in (q, k, v, u, w)), gates, final[0])
    for ref, x in zip(kept[1:], results if kept else (), strict=True):
        ref[0] = x


def _backward_kernel(q, k, v, u, w, rows, entering, inverse, p, do, dfinal, dq, dk, dv, du, dw, drows, dstate):
    G = q.shape[1]

    @pl.when(pl.program_id(2) == 0)
    def _():
        dstate[...] = dfinal[...]

    gates, read = _gates(rows[0, 0, 0], G), tuple(x[0] for x in (q, k, v, u, w))
    kept = (entering[0, :, 0], inverse[0], p[0], do[0])
    *gradients, along, dsums, dbefore, new = jax.vmap(_backward_chunk)(*read, gates, *kept, dstate[0])
    for ref, x in zip((dq, dk, dv, du, dw), gradients, strict=True):
        ref[0] = x
    dstate[0] = new
    place = places(1)
    columns = sum(jnp.where(place == r, x, 0.0) for r, x in enumerate([*dsums, *dbefore]))
    turned = columns.T[: drows.shape[-2]]
    drows[0, 0, 0] = turned + jnp.concatenate([*along, jnp.zeros((turned.shape[0] - G, CHUNK))])


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _recurrence(q_BHTC, k_BHTC, v_BHTE, u_BHTC, w_BHTC, rows, state_BHCE, interpret: bool):
    """(o [B, H, T, E], state)."""
    return _forward((q_BHTC, k_BHTC, v_BHTE, u_BHTC, w_BHTC), rows, state_BHCE, interpret, keep=False)


class Layout:
    """The grid and the blocks of arrays. backward: from the last chunk to the first."""

    def __init__(self, q_BHTC, v_BHTE, rows, backward: bool):
        (B, H, T, C), E, (_, groups, N, R, _) = q_BHTC.shape, v_BHTE.shape[-1], rows.shape
        G = H // groups
        at = (lambda n: N - 1 - n) if backward else (lambda n: n)
        of_tokens = lambda b, h, n: (b, h, at(n), 0)  # noqa: E731
        of_chunks = lambda b, h, n: (b, h, at(n), 0, 0)  # noqa: E731
        self.grid = (B, groups, N)
        self.tokens = lambda X: Block((B, H, T, X), (1, G, CHUNK, X), of_tokens)
        self.rows = Block(rows.shape, (1, 1, 1, R, CHUNK), of_chunks)
        self.states = Block((B, H, N, C, E), (1, G, 1, C, E), of_chunks)
        self.state = Block((B, H, C, E), (1, G, C, E), lambda b, h, n: (b, h, 0, 0))

    def many(self, arrays):
        """Blocks of arrays of tokens."""
        return [self.tokens(x.shape[-1]) for x in arrays]

    def call(self, kernel, inputs, outputs, interpret: bool):
        return chunks.call(kernel, self.grid, inputs, outputs, interpret)


def _forward(qkvuw, rows, state_BHCE, interpret: bool, keep: bool):
    """[o, state], and where `keep`, what the backward kernel reads: entering states, inverse, p."""
    q, _, v, _, _ = qkvuw
    at, E, half = Layout(q, v, rows, backward=False), v.shape[-1], v.dtype
    inputs = [*zip(qkvuw, at.many(qkvuw), strict=True), (rows, at.rows), (state_BHCE, at.state)]
    outputs = [(at.tokens(E), half), (at.state, jnp.float32)]
    if keep:
        outputs += [(at.states, half), (at.tokens(CHUNK), half), (at.tokens(E), half)]
    return tuple(at.call(_forward_kernel, inputs, outputs, interpret))


def _recurrence_forward(q, k, v, u, w, rows, state, interpret):
    o, state, *kept = _forward((q, k, v, u, w), rows, state, interpret, keep=True)
    return (o, state), ((q, k, v, u, w), rows, kept)


def _recurrence_backward(interpret, residuals, gradients):
    (qkvuw, rows, (entering, inverse, p)), (do, dfinal) = residuals, gradients
    q, _, v, _, _ = qkvuw
    at = Layout(q, v, rows, backward=True)
    inputs = [*zip(qkvuw, at.many(qkvuw), strict=True), (rows, at.rows), (entering, at.states)]
    inputs += [*zip((inverse, p, do), at.many((inverse, p, do)), strict=True), (dfinal, at.state)]
    outputs = [(block, v.dtype) for block in at.many(qkvuw)] + [(at.rows, jnp.float32), (at.state, jnp.float32)]
    return tuple(at.call(_backward_kernel, inputs, outputs, interpret))


_recurrence.defvjp(_recurrence_forward, _recurrence_backward)
