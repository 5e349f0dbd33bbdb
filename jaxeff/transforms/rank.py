"""Ranks: how they are given, what a weight allows, and the singular vectors that fill them."""

import logging
import math

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError
from jaxeff.core.spec import Spec

OVERSAMPLED = 10  # directions more than asked for, and how often a sketch is turned towards the largest ones
POWERS = 2


# (regex, rank), or a regex alone, for the method's own rank.
Rules = tuple[str | tuple[str, int], ...]


def check_rules(rules: Rules, rank: int, method: str, what: str = "rank") -> None:
    """Raises ValueError unless rules are as `Rules` says, and all ranks at least 1. what: how the method calls them."""
    if rank < 1:
        raise ValueError(f"{method}.{what} must be at least 1, found {rank}")
    for rule in rules:
        pair = isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[1], int) and rule[1] >= 1
        if not (pair or isinstance(rule, str)):
            raise ValueError(
                f"{method}.rules are regexes or (regex, {what}) with a {what} of at least 1, found {rule!r}"
            )


def largest(spec: Spec) -> int:
    """min(I, O)."""
    return min(math.prod(spec.inputs), math.prod(spec.outputs))


def allowed(path: str, spec: Spec, rank: int, method: str, strict: bool, wide: bool = False) -> int:
    """The rank, lowered to min(I, O) and logged where it is larger; UserError instead if strict, as it is if wide."""
    if wide or rank <= largest(spec):
        return rank
    says = f"{method}: {path} has rank {largest(spec)} at most; {rank} was asked for"
    if strict:
        raise UserError(says)
    logging.getLogger("jaxeff").warning(says)
    return largest(spec)


def warn_if_larger(path: str, spec: Spec, rank: int) -> None:
    """Logs that the factors have more numbers than the weight."""
    i, o = math.prod(spec.inputs), math.prod(spec.outputs)
    if rank * (i + o) >= i * o:
        logging.getLogger("jaxeff").warning(
            "LowRank: factors of rank %d are no smaller than %s, %d x %d; below rank %d they are",
            rank,
            path,
            i,
            o,
            -(-i * o // (i + o)),
        )


def singular(w: jax.Array, rank: int, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(U [*L, I, R], s [*L, R], V^T [*L, R, O]): the largest singular triplets of w [*L, I, O], computed in float32.

    Where the rank is less than a quarter of what is possible, from a random sketch (Halko et al. 2011, algorithms 4.4 and 5.1),
    which loses little more than the best where singular values fall (under 2 % for values 1 / i, tested); else exact.
    """
    w = w.astype(jnp.float32)
    if 4 * (rank + OVERSAMPLED) > min(w.shape[-2:]):
        u, s, v = jnp.linalg.svd(w, full_matrices=False)
        return u[..., :rank], s[..., :rank], v[..., :rank, :]
    wide = jax.random.normal(jax.random.key(0) if key is None else key, (w.shape[-1], rank + OVERSAMPLED))
    q, _ = jnp.linalg.qr(w @ wide)
    for _ in range(POWERS):
        back, _ = jnp.linalg.qr(jnp.swapaxes(w, -1, -2) @ q)
        q, _ = jnp.linalg.qr(w @ back)
    u, s, v = jnp.linalg.svd(jnp.swapaxes(q, -1, -2) @ w, full_matrices=False)
    return q @ u[..., :rank], s[..., :rank], v[..., :rank, :]
