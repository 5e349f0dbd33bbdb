"""Adam whose moments live in a narrow subspace of each gradient (Zhao et al. 2024, "GaLore"). R rank, I inputs, O outputs.

    P = the largest R singular directions of G, found again every `refresh` steps, of its shorter side
    R_t = P^T G  or  G P;    U = scale * P adam(R_t)  or  scale * adam(R_t) P^T

Moments take R O or I R numbers instead of I O. They are kept as they are when P changes, as in the paper. A weight that is no
matrix, or whose shorter side is at most R, has Adam's own.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxeff.core.spec import Spec

SCALE = 0.25
REFRESH = 200


class GaLoreState(NamedTuple):
    """count: int32, updates so far. mu, nu: moments, those of matrices in the subspace. basis: P [*L, I, R] or [*L, O, R],
    None where there is none."""

    count: jax.Array
    mu: Any
    nu: Any
    basis: Any


class _Leaf(NamedTuple):
    """What an update makes of one weight."""

    update: jax.Array
    mu: jax.Array
    nu: jax.Array
    basis: jax.Array | None


def scale_by_galore(
    specs, rank: int, b1: float, b2: float, eps: float, refresh: int = REFRESH, scale: float = SCALE
) -> optax.GradientTransformation:
    """The direction to descend, unscaled, for gradients that have the structure of `specs`."""

    def sides(spec: Spec) -> tuple[int, int]:
        return math.prod(spec.inputs), math.prod(spec.outputs)

    def narrow(spec: Spec) -> bool:
        return spec.is_matrix and min(sides(spec)) > rank

    def init(params):
        def moment(spec: Spec, p):
            i, o = sides(spec)
            shape = (*spec.stacked, *((rank, o) if i <= o else (i, rank))) if narrow(spec) else p.shape
            return jnp.zeros(shape, p.dtype)

        def basis(spec: Spec, p):
            return jnp.zeros((*spec.stacked, min(sides(spec)), rank), p.dtype) if narrow(spec) else None

        moments = (jax.tree.map(moment, specs, params) for _ in range(2))
        return GaLoreState(jnp.zeros((), jnp.int32), *moments, jax.tree.map(basis, specs, params))

    def update(grads, state, params=None):
        count = state.count + 1
        due = state.count % refresh == 0

        def one(spec: Spec, g, mu, nu, basis) -> _Leaf:
            if not narrow(spec):
                return _Leaf(*_adam(g, mu, nu, count, b1, b2, eps), basis)
            w = g.reshape(*spec.stacked, *sides(spec))
            tall = sides(spec)[0] > sides(spec)[1]
            short = _turned(w) if tall else w  # [*L, short, long]
            basis = jax.lax.cond(due, lambda: _directions(short, rank).astype(basis.dtype), lambda: basis)
            inside = _turned(basis) @ short
            inside = _turned(inside) if tall else inside
            step, mu, nu = _adam(inside, mu, nu, count, b1, b2, eps)
            whole = step @ _turned(basis) if tall else basis @ step
            return _Leaf(jnp.asarray(scale, g.dtype) * whole.reshape(g.shape), mu, nu, basis)

        leaves = jax.tree.map(one, specs, grads, state.mu, state.nu, state.basis)
        part = lambda name: jax.tree.map(
            lambda leaf: getattr(leaf, name), leaves, is_leaf=lambda x: isinstance(x, _Leaf)
        )
        return part("update"), GaLoreState(count, part("mu"), part("nu"), part("basis"))

    return optax.GradientTransformation(init, update)


def _adam(g, mu, nu, count, b1: float, b2: float, eps: float):
    """(update, first and second moment)."""
    mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * jnp.square(g)
    t = count.astype(jnp.float32)
    first, second = (m / (1 - b**t).astype(m.dtype) for m, b in ((mu, b1), (nu, b2)))
    return first / (jnp.sqrt(second) + eps), mu, nu


def _directions(w: jax.Array, rank: int) -> jax.Array:
    """The largest left singular directions of [*L, short, long], [*L, short, rank]."""
    return jnp.linalg.svd(w.astype(jnp.float32), full_matrices=False)[0][..., :rank]


def _turned(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)
