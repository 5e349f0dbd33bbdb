"""How likely tokens are after others, in few programs: padded rows of like length, in batches of one size.

B rows, T time, N scored places at a row's end, K last tokens, D model, V vocabulary.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.core.errors import UserError
from jaxeff.core.precision import Policy
from jaxeff.mixers.base import Ctx
from jaxeff.models.lm import LM

STRIDE = 64  # lengths are rounded up to multiples of it, and so many places have logits at once
CHOICES = 8  # continuations that differ in their last token alone, and are read together


@dataclasses.dataclass(frozen=True)
class Row:
    """What the model reads, and the continuations that end with one token more: [(their index, their tokens)]."""

    tokens: tuple[int, ...]
    members: list[tuple[int, tuple[int, ...]]]

    def shape(self, limit: int) -> tuple[int, int]:
        """(T, N), rounded up; rows longer than the model's texts there are none."""
        scored = max(len(continuation) for _, continuation in self.members)
        return min(rounded(len(self.tokens)), limit), rounded(scored)


def rounded(n: int) -> int:
    """The least multiple of 64 that holds n."""
    return -(-n // STRIDE) * STRIDE


def loglikelihoods(
    lm: LM,
    params,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    max_length: int,
    *,
    batch_size: int,
    policy: Policy,
) -> list[tuple[float, bool]]:
    """For each (context, continuation): the log-probability of the continuation, and whether each of its tokens is the likeliest.

    A context loses its beginning where both are longer than max_length + 1, of which the last token is not read.

    Raises UserError where a context or a continuation is empty, or a continuation longer than max_length.
    """
    found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    for (T, N), rows in _batches(_rows(pairs, max_length), max_length, batch_size):
        logp_BN, best_BN, last_BK = jax.device_get(_scores(lm, params, *_padded(rows, batch_size, T, N), policy))
        for b, row in enumerate(rows):
            for k, (index, continuation) in enumerate(row.members):
                n = len(continuation)
                total = logp_BN[b, N - n : N - 1].sum(dtype=np.float64) + last_BK[b, k]
                found[index] = float(total), bool(np.array_equal(best_BN[b, N - n :], continuation))
    return found


def _rows(pairs, max_length: int) -> Iterator[Row]:
    """Pairs that read the same share a row."""
    by_tokens: dict[tuple[int, ...], list] = {}
    for index, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            raise UserError("a context or a continuation has no tokens: nothing can be scored")
        if len(continuation) > max_length:
            raise UserError(f"a continuation has {len(continuation)} tokens; the model reads {max_length}")
        tokens = (*context, *continuation)[-(max_length + 1) : -1]
        by_tokens.setdefault(tokens, []).append((index, tuple(continuation)))
    for tokens, members in by_tokens.items():
        for start in range(0, len(members), CHOICES):
            yield Row(tokens, members[start : start + CHOICES])


def _batches(rows, limit: int, batch_size: int) -> Iterator[tuple[tuple[int, int], list[Row]]]:
    """Rows of one padded shape at a time, the largest shapes first."""
    ordered = sorted(rows, key=lambda row: row.shape(limit), reverse=True)
    for shape, alike in itertools.groupby(ordered, key=lambda row: row.shape(limit)):
        group = list(alike)
        for start in range(0, len(group), batch_size):
            yield shape, group[start : start + batch_size]


def _padded(rows: list[Row], batch_size: int, T: int, N: int):
    """(tokens_BT, lengths_B, targets_BN, last_BK): what is read and what is asked for; rows that are missing hold one token."""
    tokens_BT, lengths_B = np.zeros((batch_size, T), np.int32), np.ones(batch_size, np.int32)
    targets_BN, last_BK = np.zeros((batch_size, N), np.int32), np.zeros((batch_size, CHOICES), np.int32)
    for b, row in enumerate(rows):
        tokens_BT[b, : len(row.tokens)], lengths_B[b] = row.tokens, len(row.tokens)
        scored = row.tokens[1:][-(N - 1) :]
        targets_BN[b, N - 1 - len(scored) : N - 1] = scored
        last_BK[b, : len(row.members)] = [continuation[-1] for _, continuation in row.members]
    return tokens_BT, lengths_B, targets_BN, last_BK


@functools.partial(jax.jit, static_argnums=(0, 6))
def _scores(lm, params, tokens_BT, lengths_B, targets_BN, last_BK, policy):
    """(log-probability of each target, the likeliest token there, log-probability of each last token)."""
    N = targets_BN.shape[1]
    x_BTD = lm.hidden(params, tokens_BT, ctx=Ctx(policy=policy)).y
    place_BN = jnp.maximum(lengths_B[:, None] - N + jnp.arange(N)[None], 0)
    x_BND = jnp.take_along_axis(x_BTD, place_BN[..., None], axis=1)

    def piece(given):
        logits_BnV = lm.logits(params, given[0])
        target_Bn1 = jnp.take_along_axis(logits_BnV, given[1][..., None], axis=-1)
        norm_Bn = jax.nn.logsumexp(logits_BnV, axis=-1)
        return target_Bn1[..., 0] - norm_Bn, jnp.argmax(logits_BnV, axis=-1).astype(jnp.int32)

    def pieces(x):
        return jnp.moveaxis(x.reshape(x.shape[0], N // STRIDE, STRIDE, *x.shape[2:]), 1, 0)

    found = jax.lax.map(piece, (pieces(x_BND), pieces(targets_BN)))
    logp_BN, best_BN = (jnp.moveaxis(x, 0, 1).reshape(targets_BN.shape) for x in found)
    last_BV = jax.nn.log_softmax(lm.logits(params, x_BND[:, -1:])[:, 0], axis=-1)
    return logp_BN, best_BN, jnp.take_along_axis(last_BV, last_BK, axis=-1)
