"""Sampling from a language model: prefill, then one jitted loop of T = 1 steps. B batch, T time, N new tokens, V vocabulary."""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError
from jaxeff.core.memory import check_fits
from jaxeff.core.precision import POLICIES, Policy
from jaxeff.mixers.base import Ctx
from jaxeff.mixers.start import START, length
from jaxeff.models.apart import apart, state_apart
from jaxeff.models.lm import LM

LONG = 1 << 20  # tokens of all rows, from which on it is asked whether memory suffices
STRIDE = 64  # a streamed text's prompt and room come in multiples of it


def generate(
    lm: LM,
    params,
    prompt,
    max_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    key: jax.Array | None = None,
    eos: int | tuple[int, ...] | None = None,
    prompt_lengths=None,
    policy: Policy = POLICIES["float32"],
) -> jax.Array:
    """New tokens [B, max_tokens], int32; after `eos`, or one of several, a row is filled with it, or with the first.

    prompt: int [B, T]; prompt_lengths: int [B] or None: how many tokens of each row, counted from the left, are prompt (the rest
    is padding, whatever it holds). temperature 0 is greedy. top_k keeps the k likeliest; top_p the fewest tokens that together
    reach probability p; min_p those with at least min_p times the likeliest one's probability. The filters apply in this order
    to the distribution at the given temperature.

    Raises UserError for an empty prompt, ids outside the vocabulary, settings out of range, sampling without `key`, and a text
    longer than the model's positions where these are bounded.
    """
    filters = (top_k, top_p, min_p)
    prompt, lengths = _checked(lm, params, prompt, prompt_lengths, max_tokens, temperature, filters, key)
    key = jax.random.key(0) if key is None else key
    # Temperature is traced: trying another one does not recompile.
    fast, own = apart(lm, params, max_tokens)
    return _generate(
        (lm, fast),
        (params, own),
        prompt,
        lengths,
        max_tokens,
        temperature > 0,
        jnp.float32(temperature),
        filters,
        key,
        _marks(eos),
        policy,
    )


def _checked(lm, params, prompt, prompt_lengths, max_tokens, temperature, filters, key) -> tuple[jax.Array, jax.Array]:
    """(prompt, lengths). Raises UserError, see `generate`."""
    prompt = jnp.asarray(prompt, jnp.int32)
    lengths = jnp.full(prompt.shape[:1], prompt.shape[1]) if prompt_lengths is None else jnp.asarray(prompt_lengths)
    before, (top_k, top_p, min_p) = length(params.get(START, {})), filters
    if prompt.ndim != 2:
        raise UserError(f"the prompt must be [batch, time], found shape {prompt.shape}")
    if prompt.shape[1] < 1 or int(lengths.min()) < 1:
        raise UserError("the prompt is empty: at least one token is needed to go on from")
    if int(lengths.max()) > prompt.shape[1]:
        raise UserError(f"prompt_lengths go up to {int(lengths.max())} but the prompt has {prompt.shape[1]} columns")
    inside = jnp.arange(prompt.shape[1])[None] < lengths[:, None]
    if bool(jnp.any(inside & ((prompt < 0) | (prompt >= lm.vocab_size)))):
        raise UserError(f"the prompt holds token ids outside the vocabulary of {lm.vocab_size}")
    if max_tokens < 1:
        raise UserError(f"max_tokens must be at least 1, found {max_tokens}")
    total = before + int(lengths.max()) + max_tokens
    if lm.max_positions is not None and total > lm.max_positions:
        raise UserError(f"prompt and generation need {total} positions; the model has max_positions={lm.max_positions}")
    if prompt.shape[0] * total > LONG:
        state = jax.eval_shape(lambda: lm.init_state(prompt.shape[0], total))
        needs = {"the state": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))}
        check_fits(
            needs | {"tokens": 4 * prompt.shape[0] * total}, f"generating up to {total:,} tokens", "ask for fewer"
        )
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature must be at least 0 and finite, found {temperature}")
    if temperature > 0 and key is None:
        raise UserError("sampling at a temperature above 0 needs key=jax.random.key(seed)")
    if top_k is not None and not 1 <= top_k <= lm.vocab_size:
        raise UserError(f"top_k must lie in 1..{lm.vocab_size}, found {top_k}")
    for name, p in (("top_p", top_p), ("min_p", min_p)):
        if p is not None and not 0 < p <= 1:
            raise UserError(f"{name} must lie in (0, 1], found {p}")
    chosen = [
        f"{name}={value}" for name, value in (("top_k", top_k), ("top_p", top_p), ("min_p", min_p)) if value is not None
    ]
    if chosen and temperature == 0:
        raise UserError(
            f"{chosen[0]} chooses among tokens to draw from; at temperature 0 none is drawn: give one above 0"
        )
    return prompt, lengths


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 7, 9, 10))
def _generate(lms, both, prompt_BT, lengths_B, n, sampled, temperature, filters, key, eos, policy):
    (lm, fast), (params, own) = lms, both
    pick = functools.partial(_pick, sampled, filters, temperature, key)
    logits_BV, state = read_prompt(lm, params, prompt_BT, lengths_B, n, policy)
    state = state if fast is lm else state_apart(lm, state)
    token_B = pick(logits_BV, 0)

    def more(carry):
        step, _, _, _, done_B = carry
        return (step < n) & ~jnp.all(done_B)

    def advance(carry):
        step, token_B, state, out_BN, done_B = carry
        logits_BV, state = read_token(fast, own, token_B, state, policy)
        token_B = pick(logits_BV, step)
        if eos:
            token_B = jnp.where(done_B, eos[0], token_B)
            done_B = done_B | _ended(token_B, eos)
        out_BN = jax.lax.dynamic_update_slice(out_BN, token_B[:, None], (0, step))
        return step + 1, token_B, state, out_BN, done_B

    fill = eos[0] if eos else 0
    out_BN = jnp.full((prompt_BT.shape[0], n), fill, jnp.int32).at[:, 0].set(token_B)
    return jax.lax.while_loop(more, advance, (jnp.int32(1), token_B, state, out_BN, _ended(token_B, eos)))[3]


def stream(
    lm: LM,
    params,
    prompt,
    max_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    key: jax.Array | None = None,
    eos: int | tuple[int, ...] | None = None,
    policy: Policy = POLICIES["float32"],
) -> Iterator[int]:
    """The tokens that `generate` gives for one text, each as soon as it is known, up to the one that ends it.

    prompt: int [T]. Prompts are read in whole multiples of 64 tokens, so that a conversation compiles few programs.

    Raises UserError as `generate` does.
    """
    filters = (top_k, top_p, min_p)
    row = jnp.asarray(prompt, jnp.int32)[None]
    prompt, lengths = _checked(lm, params, row, None, max_tokens, temperature, filters, key)
    key, eos = jax.random.key(0) if key is None else key, _marks(eos)
    chosen = temperature > 0, filters, jnp.float32(temperature), key
    room = -(-max_tokens // STRIDE) * STRIDE
    prompt = jnp.pad(prompt, ((0, 0), (0, -prompt.shape[1] % STRIDE)))
    logits_BV, state, lm, params = _ready(lm, params, prompt, lengths, room, policy)
    for step in range(max_tokens):
        token_B = _pick_alone(*chosen, logits_BV, step)
        yield int(token_B[0])
        if int(token_B[0]) in eos or step + 1 == max_tokens:
            return
        logits_BV, state = _next_alone(lm, params, token_B, state, policy)


def in_pieces(
    lm: LM,
    params,
    prompt,
    max_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    key: jax.Array | None = None,
    eos: int | tuple[int, ...] | None = None,
    prompt_lengths=None,
    policy: Policy = POLICIES["float32"],
) -> Iterator[jax.Array]:
    """The tokens of `generate`, [B, at most 64] at a time, for who may know after any piece that it is enough.

    Raises UserError as `generate` does.
    """
    filters = (top_k, top_p, min_p)
    prompt, lengths = _checked(lm, params, prompt, prompt_lengths, max_tokens, temperature, filters, key)
    key, eos = jax.random.key(0) if key is None else key, _marks(eos)
    chosen = temperature > 0, filters
    room = -(-max_tokens // STRIDE) * STRIDE
    logits_BV, state, lm, params = _ready(lm, params, prompt, lengths, room, policy)
    done_B = jnp.zeros(prompt.shape[:1], bool)
    for step in range(0, max_tokens, STRIDE):
        drawn = step, jnp.float32(temperature), key
        out_BN, logits_BV, state, done_B = _piece(lm, params, logits_BV, state, done_B, drawn, chosen, eos, policy)
        yield out_BN[:, : max_tokens - step]


@functools.partial(jax.jit, static_argnums=(0, 6, 7, 8), donate_argnums=3)
def _piece(lm, params, logits_BV, state, done_B, drawn, chosen, eos, policy):
    """(the next tokens, the logits and the state after them, which rows have ended)."""
    start, temperature, key = drawn

    def more(carry):
        n, _, _, _, done_B = carry
        return (n < STRIDE) & ~jnp.all(done_B)

    def advance(carry):
        n, logits_BV, state, out_BN, done_B = carry
        token_B = _pick(*chosen, temperature, key, logits_BV, start + n)
        if eos:
            token_B = jnp.where(done_B, eos[0], token_B)
            done_B = done_B | _ended(token_B, eos)
        out_BN = jax.lax.dynamic_update_slice(out_BN, token_B[:, None], (0, n))
        logits_BV, state = read_token(lm, params, token_B, state, policy)
        return n + 1, logits_BV, state, out_BN, done_B

    out_BN = jnp.full((done_B.shape[0], STRIDE), eos[0] if eos else 0, jnp.int32)
    _, logits_BV, state, out_BN, done_B = jax.lax.while_loop(
        more, advance, (jnp.int32(0), logits_BV, state, out_BN, done_B)
    )
    return out_BN, logits_BV, state, done_B


def _ready(lm, params, prompt_BT, lengths_B, room: int, policy):
    """(logits after each row's prompt, the state, the model and the parameters to go on with)."""
    logits_BV, state = _read_alone(lm, params, prompt_BT, lengths_B, room, policy)
    fast, own = apart(lm, params, room)
    return logits_BV, state if fast is lm else _state_apart_alone(lm, state), fast, own


def read_prompt(lm, params, prompt_BT, lengths_B, room: int, policy):
    """(float32 logits [B, V] after each row's prompt, the state, which holds `room` tokens more). prompt_BT: int32, padded on the
    right; lengths_B: tokens of each row that are no padding, at least 1."""
    inside_BT = jnp.arange(prompt_BT.shape[1])[None] < lengths_B[:, None]
    state = lm.start(params, prompt_BT.shape[0], prompt_BT.shape[1] + room, ctx=Ctx(policy=policy))
    ctx = Ctx(segment_ids=inside_BT.astype(jnp.int32), policy=policy)
    out = lm.hidden(params, jnp.where(inside_BT, prompt_BT, 0), state, ctx=ctx)
    last_B1D = jnp.take_along_axis(out.y, (lengths_B - 1)[:, None, None], axis=1)
    return lm.logits(params, last_B1D)[:, 0], out.state


def read_token(lm, params, token_B, state, policy):
    """(float32 logits [B, V] after one token more in each row, the state). token_B: int32."""
    out = lm.apply(params, token_B[:, None], state, ctx=Ctx(policy=policy))
    return out.y[:, 0], out.state


def _pick(sampled: bool, filters, temperature, key, logits_BV, step):
    if not sampled:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = keep(logits_BV / temperature, *filters)
    return jax.random.categorical(jax.random.fold_in(key, step), logits_BV, axis=-1).astype(jnp.int32)


_read_alone = jax.jit(read_prompt, static_argnums=(0, 4, 5))
_state_apart_alone = jax.jit(state_apart, static_argnums=0)
_next_alone = jax.jit(read_token, static_argnums=(0, 4), donate_argnums=3)
_pick_alone = jax.jit(_pick, static_argnums=(0, 1))


def _marks(eos: int | tuple[int, ...] | None) -> tuple[int, ...]:
    return () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)


def _ended(token_B, eos: tuple[int, ...]):
    return jnp.isin(token_B, jnp.asarray(eos, jnp.int32)) if eos else jnp.zeros(token_B.shape, bool)


def keep(
    logits_BV: jax.Array, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None
) -> jax.Array:
    """Logits with the tokens that the filters exclude at -inf; the likeliest token always stays."""
    if top_k is not None:
        kth_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)
    if top_p is not None:
        sorted_BV = -jnp.sort(-logits_BV, axis=-1)
        p_BV = jax.nn.softmax(sorted_BV, axis=-1)
        # A token stays while the likelier ones together have not yet reached p.
        inside_BV = jnp.cumsum(p_BV, axis=-1) - p_BV < top_p
        least_B1 = jnp.min(jnp.where(inside_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    if min_p is not None:
        floor_B1 = jnp.max(logits_BV, axis=-1, keepdims=True) + jnp.log(jnp.float32(min_p))
        logits_BV = jnp.where(logits_BV < floor_B1, -jnp.inf, logits_BV)
    return logits_BV
