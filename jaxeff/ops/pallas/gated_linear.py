"""The chunked form of the gated recurrence with one gate a head or none, as a Mosaic kernel for TPUs.

The equations are those of `ops.gated_linear`, what is computed that of its `_by_sums`: factors of products have 16 bits, sums and
the state are float32. Steps are those of `ops.pallas.chunks`. Where all heads share q and k (Mamba-2), a step of G heads multiplies
q and k once, and what q and k do to values and states is one product for several heads.

Within a step values are [G E, I] and states [G E, C]: channels of heads one after the other fill the matrix units' rows, and
factors of tokens are rows. So weights of tokens are [J, I], what i reads of j. Values come token by token, [B, T, H E], as a
convolution leaves them, and are turned in vector memory; results leave as they are, [B, H E, T], as XLA likes to have those of
narrow heads.

The backward kernel goes from the last chunk to the first and reads again the states that entered chunks.

The compiler's schedule for a v5e, B 4, T 2048, H 64, C 128, E 64, q and k shared, with gains and skips: a step of 16 heads is 1822
cycles forward and 4915 backward, 0.31 and 0.84 ms of all 256 steps at 1.5 GHz, of which matrix units multiply 0.14 and 0.38;
arguments and results meanwhile keep main memory busy for 0.25 and 0.37. Gains and skips are 104 and 178 of the cycles, turning
values 31 and 142; the passes over main memory that they spare a Mamba-2 layer take 2.1 and 1.2 ms. `ops.pallas.chunks` says how to
count again.

B batch, T time, H heads, G heads of a step, P heads of a tile, whose rows go through the matrix unit together, C key dim, E value
dim, X = P E, N chunks, I and J times within a chunk, R rows of numbers that tokens have beside their vectors.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxeff.core.sharding import RULES, Rules
from jaxeff.core.target import kernel_scope
from jaxeff.ops.pallas import chunks
from jaxeff.ops.pallas.chunks import CHUNK, LANES, NEVER, Block, cols_by_cols, mul, places, rows_by_rows

NARROW = 64  # the value dim below 128 that is worth it
TILE = 128  # rows of a tile, at most
CYCLES = 17.4e-6  # for a FLOP of products, by the schedule
BACKWARD = 2.7  # what the backward kernel multiplies over what the forward one does, by the schedule


def why_not(q_BTHC: jax.Array, v_BTHE: jax.Array, log_a: jax.Array | None) -> str | None:
    """Why the kernel cannot serve a call, or None."""
    return chunks.why_not(q_BTHC, v_BTHE, log_a, q_BTHC.dtype, NARROW)


def by_kernel(
    q_BTHC, k_BTHC, v_BTHE, log_a_BTH, reset_BT, state_BHCE, gain_BTH=None, skip_H=None, *, interpret: bool = False
):
    """(o_BTHE in q's type, state [B, H, C, E] in float32); arguments as for `ops.gated_linear`, q and k of H heads or one.
    interpret: run on any machine, slowly."""
    (B, T, Q, C), (H, E), half = q_BTHC.shape, v_BTHE.shape[2:], q_BTHC.dtype
    G = chunks.heads_of_a_step(H, C, E)
    # Zeros after the end: k = 0 and log a = 0, nothing happens there.
    q, k, v = (jnp.pad(x.astype(half), ((0, 0), (0, -T % CHUNK), (0, 0), (0, 0))) for x in (q_BTHC, k_BTHC, v_BTHE))
    q, k, v = q.reshape(B, -1, Q * C), k.reshape(B, -1, Q * C), v.reshape(B, -1, H * E)
    factors = _factors(gain_BTH, skip_H, (B, T, H))
    rows = chunks.gate_rows(log_a_BTH, reset_BT, (B, T, H), G, factors_BTH=factors)
    state = state_BHCE.astype(jnp.float32).swapaxes(2, 3).reshape(B, H * E, C)
    with _told(_flops(q, v, E, C, G)):
        o, state = _recurrence(q, k, v, rows, state, E, bool(factors), interpret)
    o_BTHE = o.reshape(B, H, E, -1).transpose(0, 3, 1, 2)[:, :T]
    return o_BTHE, state.reshape(B, H, E, C).swapaxes(2, 3)


def _factors(gain_BTH, skip_H, shape_BTH) -> tuple:
    """(gain, skip) of each token, nothing where there is neither."""
    if gain_BTH is None and skip_H is None:
        return ()
    gain_BTH = jnp.ones(shape_BTH) if gain_BTH is None else gain_BTH
    return gain_BTH, jnp.broadcast_to(jnp.zeros(shape_BTH[2:]) if skip_H is None else skip_H, shape_BTH)


def _flops(q, v, E: int, C: int, G: int) -> int:
    """Of the forward kernel's products, for q [B, T, Q C] and v [B, T, H E]."""
    (B, T, HE), heads, keys = v.shape, v.shape[2] // E, q.shape[-1] // C
    return 2 * B * T * ((CHUNK + 2 * C) * HE + (heads // G if keys < heads else heads) * CHUNK * C)


def _told(flops: int):
    """The context of a kernel's call."""
    return kernel_scope(flops, LANES, int(CYCLES * flops))


def on_each_device(*arrays, mesh=None, rules: Rules = RULES, interpret: bool = False):
    """`by_kernel(*arrays)` by each device of the mesh for its rows and heads; q and k that heads share are whole on each."""
    q_BTHC, _, v_BTHE, *_ = arrays
    keys = "rows" if q_BTHC.shape[2] < v_BTHE.shape[2] else "tokens"
    kinds = (keys, keys, "tokens", "tokens", "rows", "state", "tokens", "heads")[: len(arrays)]
    run = functools.partial(by_kernel, interpret=interpret)
    return chunks.on_each_device(run, arrays, kinds, v_BTHE.shape[:3], mesh, rules)


class Step:
    """A step's heads: which key and which rows are whose, their gates, gains and skips. keys: how many q and k the step has, G or
    one. scaled: whether there are gains and skips."""

    def __init__(self, rows_RI, keys: int, G: int, E: int, scaled: bool):
        self.E, self.G, self.shared = E, G, keys == 1
        self.rows_RI, self.cols_JR = rows_RI, rows_RI.T
        self.gain_RI, self.skip_RI = (rows_RI[n * G + 1 : (n + 1) * G + 1] if scaled else None for n in (1, 2))
        resets = rows_RI[G : G + 1]
        weight = lambda same, log: jnp.exp(jnp.where(same, log, NEVER))  # noqa: E731
        self.since_RI = weight(resets == 0, rows_RI)
        self.until_RI = weight(resets == resets[:, -1:], rows_RI[:, -1:] - rows_RI)
        seen = (places(1) >= places(0)) & (resets == self.cols_JR[:, G : G + 1])
        self.log_seen_JI = jnp.where(seen, 0.0, NEVER)

    def key(self, h: int) -> int:
        """The number of head h's q and k."""
        return 0 if self.shared else h

    def rows(self, heads: range) -> slice:
        """Where channels of heads lie."""
        return slice(heads.start * self.E, heads.stop * self.E)

    def tiles(self) -> list[range]:
        """Heads of each."""
        P = next(p for p in range(max(1, TILE // self.E), 0, -1) if self.G % p == 0)
        return [range(first, first + P) for first in range(0, self.G, P)]

    def between(self, h: int):
        """How much of token j is left at i, [J, I]."""
        return jnp.exp(self.rows_RI[h : h + 1] - self.cols_JR[:, h : h + 1] + self.log_seen_JI)

    def spread(self, x_RI, heads: range):
        """A factor of tokens, or of states, over a tile's channels: [R, I] -> [X, I]."""
        return jnp.concatenate([jnp.broadcast_to(x_RI[h : h + 1], (self.E, x_RI.shape[1])) for h in heads])

    def scaled(self, x_XI, factor_RI, heads: range):
        """x times a factor, if there is one."""
        return x_XI if factor_RI is None else x_XI * self.spread(factor_RI, heads)

    def summed(self, x_XI, heads: range):
        """[1, I] of each head of a tile."""
        parts = [x_XI[p * self.E : (p + 1) * self.E] for p in range(len(heads))]
        return [jnp.sum(part, axis=0, keepdims=True) for part in parts]

    def by_key(self, f, x_XI, heads: range):
        """f(number of a key, rows of x): all of a tile's rows where heads share the key, else each head's, one below the other."""
        if self.shared:
            return f(0, x_XI)
        return jnp.concatenate([f(h, x_XI[p * self.E : (p + 1) * self.E]) for p, h in enumerate(heads)])


def _wide(x):
    return x.astype(jnp.float32)


def _keys(x, keys: int):
    """[q or k of each of a step's keys]."""
    C = x.shape[-1] // keys
    return [x[0, :, i * C : (i + 1) * C] for i in range(keys)]


def _start(q, k, v, rows, E: int, keys: int, scaled: bool):
    """(step, [q], [k], [scores before decay, [J, I]])."""
    q, k = _keys(q, keys), _keys(k, keys)
    step = Step(rows[0, 0, 0], keys, v.shape[2] // E, E, scaled)
    return step, q, k, [rows_by_rows(y, x) for x, y in zip(q, k, strict=True)]


def _forward_kernel(q, k, v, rows, state, o, final, *entering, E: int, keys: int, scaled: bool):
    """final's block stays where it is from chunk to chunk: it holds the state. entering: what the backward kernel reads."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        final[...] = state[...]

    for ref in entering:
        ref[0, 0] = final[0].astype(ref.dtype)
    step, q, k, scores = _start(q, k, v, rows, E, keys, scaled)
    kept_RC = jnp.broadcast_to(step.since_RI[:, -1:], (step.since_RI.shape[0], final.shape[2]))
    for heads in step.tiles():
        at = step.rows(heads)
        values, S = _wide(v[0, :, at]).T, final[0, at]
        written = step.scaled(values, step.gain_RI, heads)
        weights = [scores[step.key(h)] * step.between(h) for h in heads]
        own = jnp.concatenate([mul(written[p * E : (p + 1) * E], x) for p, x in enumerate(weights)])
        read = step.by_key(lambda i, x: rows_by_rows(x, q[i]), S, heads)
        own = own if not scaled else own + step.scaled(values, step.skip_RI, heads)
        o[0, at] = (own + step.spread(step.since_RI, heads) * read).astype(o.dtype)
        kept = written * step.spread(step.until_RI, heads)
        final[0, at] = step.spread(kept_RC, heads) * S + step.by_key(lambda i, x: mul(x, k[i]), kept, heads)


def _backward_kernel(
    q, k, v, rows, entering, do, dfinal, dq, dk, dv, drows, dstate, *, E: int, keys: int, scaled: bool
):
    @pl.when(pl.program_id(2) == 0)
    def _():
        dstate[...] = dfinal[...]

    step, q, k, scores = _start(q, k, v, rows, E, keys, scaled)
    kept_RC = jnp.broadcast_to(step.since_RI[:, -1:], (step.since_RI.shape[0], dstate.shape[2]))
    dscores, dqs, dks = ([0.0] * keys for _ in range(3))
    dsums, of_j, ended, states, dgains, dskips = [], [], [], [], [], []
    for heads in step.tiles():
        at = step.rows(heads)
        values, S, out, dS = _wide(v[0, :, at]).T, entering[0, 0, at], do[0, at], dstate[0, at]
        written = step.scaled(values, step.gain_RI, heads)
        until, kept = step.spread(step.until_RI, heads), step.spread(kept_RC, heads)
        read = step.by_key(lambda i, x: rows_by_rows(x, q[i]), S, heads)
        gained = until * step.by_key(lambda i, x: rows_by_rows(x, k[i]), dS, heads)
        dread, added = step.spread(step.since_RI, heads) * _wide(out), until * written
        of_reading, of_gaining = step.summed(dread * read, heads), step.summed(written * gained, heads)
        ended += of_gaining
        states += step.summed(kept * dS * _wide(S), heads)
        seen = []
        for p, h in enumerate(heads):
            between, i, part = step.between(h), step.key(h), slice(p * E, (p + 1) * E)
            weights, dweights = scores[i] * between, cols_by_cols(written[part], out[part])
            seen.append(rows_by_rows(out[part], weights))
            dscores[i] += dweights * between
            of_gate = (dweights * weights).astype(jnp.bfloat16)  # rounded once: what both sums hold cancels
            of_j.append(rows_by_rows(jnp.ones((16, CHUNK)), of_gate)[:1])
            dsums.append(jnp.sum(_wide(of_gate), axis=0, keepdims=True) + of_reading[p] - of_gaining[p])
            if not step.shared:
                dqs[h], dks[h] = cols_by_cols(dread[part], S[part]), cols_by_cols(added[part], dS[part])
        if step.shared:
            dqs[0] += cols_by_cols(dread, S)
            dks[0] += cols_by_cols(added, dS)
        dwritten = jnp.concatenate(seen) + gained
        if scaled:
            dgains += step.summed(values * dwritten, heads)
            dskips += step.summed(values * _wide(out), heads)
            dwritten = step.scaled(dwritten, step.gain_RI, heads) + step.scaled(_wide(out), step.skip_RI, heads)
        dv[0, :, at] = dwritten.T.astype(dv.dtype)
        dstate[0, at] = kept * dS + step.by_key(lambda i, x: mul(x, q[i]), dread, heads)
    for ref, of_states, f, xs in ((dq, dqs, cols_by_cols, k), (dk, dks, mul, q)):
        found = [x + f(dscore, y) for x, dscore, y in zip(of_states, dscores, xs, strict=True)]
        ref[...] = jnp.concatenate(found, axis=1).astype(ref.dtype).reshape(ref.shape)
    along = lambda rows: jnp.sum(jnp.concatenate(rows), axis=1, keepdims=True)  # noqa: E731
    dsums = jnp.concatenate(dsums) - jnp.concatenate(of_j)
    dsums = dsums + jnp.where(places(1, dsums.shape) == CHUNK - 1, along(ended) + along(states), 0.0)
    found = [dsums, jnp.zeros((1, CHUNK)), *dgains, *dskips]
    filled = jnp.zeros((drows.shape[-2] - sum(len(x) for x in found), CHUNK))
    drows[0, 0, 0] = jnp.concatenate([*found, filled])


class Layout:
    """The grid and the blocks of arrays, and how many keys a step has. backward: from the last chunk to the first."""

    def __init__(self, q, v, rows, state, E: int, backward: bool):
        (B, T, QC), (_, HE, C), (_, groups, N, R, _) = q.shape, state.shape[-3:], rows.shape
        shared, G = QC == C, HE // E // groups
        self.keys_of_a_step = 1 if shared else G
        at = (lambda n: N - 1 - n) if backward else (lambda n: n)
        of_tokens = (lambda b, h, n: (b, at(n), 0)) if shared else (lambda b, h, n: (b, at(n), h))
        self.grid = (B, groups, N)
        self.values = Block((B, T, HE), (1, CHUNK, G * E), lambda b, h, n: (b, at(n), h))
        self.results = Block((B, HE, T), (1, G * E, CHUNK), lambda b, h, n: (b, h, at(n)))
        self.keys = Block(q.shape, (1, CHUNK, self.keys_of_a_step * C), of_tokens)
        self.of_groups = Block((B, groups, T, C), (1, 1, CHUNK, C), lambda b, h, n: (b, h, at(n), 0))
        self.rows = Block(rows.shape, (1, 1, 1, R, CHUNK), lambda b, h, n: (b, h, at(n), 0, 0))
        self.states = Block((B, N, HE, C), (1, 1, G * E, C), lambda b, h, n: (b, at(n), h, 0))
        self.state = Block((B, HE, C), (1, G * E, C), lambda b, h, n: (b, h, 0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _recurrence(q, k, v, rows, state, E: int, scaled: bool, interpret: bool):
    """(o [B, H E, T], state [B, H E, C])."""
    return _forward(q, k, v, rows, state, E, scaled, interpret, keep=False)


def _forward(q, k, v, rows, state, E: int, scaled: bool, interpret: bool, keep: bool):
    """(o, state), and where `keep` the entering states."""
    at = Layout(q, v, rows, state, E, backward=False)
    inputs = [(q, at.keys), (k, at.keys), (v, at.values), (rows, at.rows), (state, at.state)]
    outputs = [(at.results, v.dtype), (at.state, jnp.float32)] + [(at.states, v.dtype)] * keep
    kernel = functools.partial(_forward_kernel, E=E, keys=at.keys_of_a_step, scaled=scaled)
    return tuple(chunks.call(kernel, at.grid, inputs, outputs, interpret))


def _recurrence_forward(q, k, v, rows, state, E, scaled, interpret):
    o, state, entering = _forward(q, k, v, rows, state, E, scaled, interpret, keep=True)
    return (o, state), (q, k, v, rows, entering)


def _recurrence_backward(E, scaled, interpret, residuals, gradients):
    (q, k, v, rows, entering), (do, dfinal) = residuals, gradients
    at = Layout(q, v, rows, dfinal, E, backward=True)
    inputs = [(q, at.keys), (k, at.keys), (v, at.values), (rows, at.rows)]
    inputs += [(entering, at.states), (do, at.results), (dfinal, at.state)]
    shared = q.shape[-1] == dfinal.shape[-1]
    of_keys = (at.of_groups, jnp.float32) if shared else (at.keys, q.dtype)
    outputs = [of_keys, of_keys, (at.values, v.dtype), (at.rows, jnp.float32), (at.state, jnp.float32)]
    kernel = functools.partial(_backward_kernel, E=E, keys=at.keys_of_a_step, scaled=scaled)
    flops = int(
        BACKWARD * _flops(q, v, E, dfinal.shape[-1], chunks.heads_of_a_step(v.shape[2] // E, dfinal.shape[-1], E))
    )
    with _told(flops):
        dq, dk, *others = chunks.call(kernel, at.grid, inputs, outputs, interpret)
    if shared:
        dq, dk = (x.sum(1).astype(q.dtype) for x in (dq, dk))
    return dq, dk, *others


_recurrence.defvjp(_recurrence_forward, _recurrence_backward)
