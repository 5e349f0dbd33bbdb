"""One model out of several of the same shape: weights added, averaged, or turned into each other.

With tau_i = theta_i - theta_0 what a model learned beyond a common base theta_0:

    soup            sum_i w_i theta_i                                       (Wortsman et al. 2022)
    task_arithmetic theta_0 + sum_i s_i tau_i                               (Ilharco et al. 2023)
    ties            theta_0 + s mean of the trimmed tau_i of the sign that most of their weight has      (Yadav et al. 2023)
    dare            theta_0 + sum_i s_i mask_i tau_i / (1 - drop)           (Yu et al. 2024)
    slerp           along the great circle between two tensors              (Shoemake 1985)

Trees are plain parameters, or the adapters alone; the result has the dtypes of the first. Everything is computed in float32.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError
from jaxeff.core.tree import map_with_path, paths

PARALLEL = 1.0 - 1e-6  # cosines beyond which two tensors are mixed in a straight line


def soup(trees: Sequence[Any], weights: Sequence[float] | None = None) -> Any:
    """The weighted mean; weights None are equal, others are divided by their sum.

    Raises UserError for trees that differ in shape, as all of these do, and for weights of another number or of sum 0.
    """
    shares = _numbers("weights", weights, trees)
    if not math.fsum(shares):
        raise UserError(f"weights must have a sum other than 0, found {tuple(shares)}")
    shares = [share / math.fsum(shares) for share in shares]
    return _each(lambda path, *xs: sum(s * x for s, x in zip(shares, xs, strict=True)), trees)


def task_arithmetic(base: Any, trees: Sequence[Any], scales: Sequence[float]) -> Any:
    """The base and scaled parts of what each tree learned; a negative scale unlearns."""
    scales = _numbers("scales", scales, trees)
    return _each(lambda path, x0, *xs: x0 + sum(s * (x - x0) for s, x in zip(scales, xs, strict=True)), [base, *trees])


def ties(base: Any, trees: Sequence[Any], density: float = 0.2, scale: float = 1.0) -> Any:
    """The base and the mean of what trees agree on: of each tau the share `density` of a tensor that is largest, and of these the
    ones of the sign of their sum."""
    if not 0 < density <= 1:
        raise UserError(f"density must lie in (0, 1], found {density}")
    _numbers("trees", None, trees)

    def one(path, x0, *xs):
        taus = jnp.stack([_largest(x - x0, density) for x in xs])
        agree = (jnp.sign(taus) == jnp.sign(jnp.sum(taus, axis=0, keepdims=True))) & (taus != 0)
        number = jnp.maximum(jnp.sum(agree, axis=0), 1).astype(jnp.float32)
        return x0 + scale * jnp.sum(jnp.where(agree, taus, 0.0), axis=0) / number

    return _each(one, [base, *trees])


def dare(
    base: Any, trees: Sequence[Any], key: jax.Array, drop: float = 0.9, scales: Sequence[float] | None = None
) -> Any:
    """The base and what each tree learned, a random share `drop` of it left out and the rest scaled up for that; scales None are
    1 / number of trees."""
    if not 0 <= drop < 1:
        raise UserError(f"drop must lie in [0, 1), found {drop}")
    scales = _numbers("scales", scales, trees)

    def one(path, x0, *xs):
        keys = jax.random.split(jax.random.fold_in(key, crc32(path.encode())), len(xs))
        kept = (jax.random.bernoulli(k, 1 - drop, x0.shape) for k in keys)
        return x0 + sum(s * jnp.where(m, x - x0, 0.0) / (1 - drop) for s, m, x in zip(scales, kept, xs, strict=True))

    return _each(one, [base, *trees])


def slerp(first: Any, second: Any, t: float) -> Any:
    """From the first (t = 0) to the second (1) along the great circle, tensor by tensor; in a straight line where both point the
    same way, or one is zero."""
    if not 0 <= t <= 1:
        raise UserError(f"t must lie in [0, 1], found {t}")

    def one(path, x, y):
        norms = jnp.linalg.norm(x.ravel()) * jnp.linalg.norm(y.ravel())
        cosine = jnp.where(norms > 0, jnp.vdot(x, y) / jnp.where(norms > 0, norms, 1.0), 1.0)
        straight = jnp.abs(cosine) > PARALLEL
        angle = jnp.arccos(jnp.where(straight, 0.0, cosine))
        a, b = (jnp.sin(share * angle) / jnp.sin(angle) for share in (1 - t, t))
        return jnp.where(straight, 1 - t, a) * x + jnp.where(straight, t, b) * y

    return _each(one, [first, second])


def _largest(x: jax.Array, density: float) -> jax.Array:
    """x where it is among the largest share, else 0; of equal ones the first."""
    size = jnp.abs(x).ravel()
    n = max(1, round(density * size.size))
    kept = jnp.zeros(size.shape, bool).at[jnp.argsort(-size, stable=True)[:n]].set(True)
    return jnp.where(kept.reshape(x.shape), x, 0.0)


def _numbers(name: str, numbers: Sequence[float] | None, trees: Sequence[Any]) -> list[float]:
    """One number a tree; None: equal ones of sum 1."""
    if not trees:
        raise UserError("nothing to merge: no trees were given")
    numbers = [1.0 / len(trees)] * len(trees) if numbers is None else list(numbers)
    if len(numbers) != len(trees):
        raise UserError(f"{name} must be as many as trees, {len(trees)}, found {len(numbers)}")
    return numbers


def _each(f: Callable[..., jax.Array], trees: Sequence[Any]) -> Any:
    """f(path, *arrays in float32) for each array of the trees, in the dtype of the first; what is no float must be equal in all.

    Raises UserError where they differ in paths, shapes or integers.
    """
    shapes = [{path: x.shape for path, x in paths(tree).items()} for tree in trees]
    for i, other in enumerate(shapes[1:], 1):
        for path in sorted(set(shapes[0]) | set(other)):
            if shapes[0].get(path) != other.get(path):
                raise UserError(
                    f"trees 0 and {i} do not fit: {path} is {shapes[0].get(path, 'absent')} and {other.get(path, 'absent')}"
                )

    def one(path: str, *xs):
        if jnp.issubdtype(xs[0].dtype, jnp.inexact):
            return f(path, *(x.astype(jnp.float32) for x in xs)).astype(xs[0].dtype)
        if not all(bool(jnp.array_equal(x, xs[0])) for x in xs):
            raise UserError(f"{path} holds {xs[0].dtype} codes, which differ between trees: merge(params) first")
        return xs[0]

    return map_with_path(one, *trees)
