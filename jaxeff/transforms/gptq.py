"""Rounding that makes up for itself (Frantar et al. 2022, "GPTQ"), and scales that spare what matters (Lin et al. 2023, "AWQ").

I inputs, O outputs, G groups of S inputs. Both want the least E|x W - x W'|^2 = tr((W - W')^T H (W - W')), H = E[x^T x].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

DAMPING = 0.01  # of the mean of H's diagonal
EXPONENTS = tuple(i / 20 for i in range(20))


def feed_errors(w_IO: jax.Array, h_II: jax.Array, size: int, fit: Callable, nearest: Callable):
    """(W, numbers [G, ...]): each input's weights rounded in turn, its error taken out of the inputs that are still to come.

    size: S, which divides I. fit(group [S, O]) -> the numbers, a tree, that a group is rounded with, found when its first input
    comes, from what W is by then; nearest(row [O], numbers) -> the row, rounded.

    With U the upper triangular root of H^-1 = U^T U, rounding row i by d leaves an error that the later rows j make up for best by
    -d U_ij / U_ii (equation 2 of the paper, all columns at once).
    """
    I = len(h_II)
    damp = DAMPING * jnp.mean(jnp.diagonal(h_II))
    # An input that is never there weighs nothing: its row of H is that of the identity.
    absent = jnp.diagonal(h_II) == 0
    inverse = jnp.linalg.inv(h_II + jnp.diag(jnp.where(absent, 1.0, 0.0) + damp))
    u_II = jnp.linalg.cholesky((inverse + inverse.T) / 2).T

    def group(w_IO, g):
        first = g * size
        numbers = fit(jax.lax.dynamic_slice_in_dim(w_IO, first, size))

        def one(s, w_IO):
            i = first + s
            rounded = nearest(w_IO[i], numbers)
            error = (w_IO[i] - rounded) / u_II[i, i]
            later = jnp.where(jnp.arange(I) > i, u_II[i], 0.0)
            return (w_IO - later[:, None] * error[None]).at[i].set(rounded)

        return jax.lax.fori_loop(0, size, one, w_IO), numbers

    return jax.lax.scan(group, w_IO, jnp.arange(I // size))


def loss(w_IO: jax.Array, rounded_IO: jax.Array, h_II: jax.Array) -> jax.Array:
    """tr((W - W')^T H (W - W')): what rounding costs."""
    d_IO = w_IO - rounded_IO
    return jnp.sum(d_IO * (h_II @ d_IO))


def sparing(w_IO: jax.Array, h_II: jax.Array, size_I: jax.Array, rounded: Callable) -> jax.Array:
    """The scale of each input [I] with which rounding costs least, among powers of its mean size: W' = round(W s) / s.

    rounded(w_IO) -> w_IO as it comes back from its codes. Scales are normed to a geometric mean of 1 between their extremes.
    """

    def scale(exponent):
        s_I = jnp.maximum(size_I, 1e-4 * jnp.mean(size_I)) ** exponent
        return s_I / jnp.sqrt(jnp.max(s_I) * jnp.min(s_I))

    def cost(exponent):
        s_I = scale(exponent)[:, None]
        return loss(w_IO, rounded(w_IO * s_I) / s_I, h_II)

    exponents = jnp.asarray(EXPONENTS, jnp.float32)
    return scale(exponents[jnp.argmin(jax.lax.map(cost, exponents))])
