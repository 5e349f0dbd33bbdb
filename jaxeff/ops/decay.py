"""How much tokens of a chunk have decayed between each other, with one gate a head, for products of 16-bit factors.

B batch, T time, H heads, N chunks, I and J times within a chunk.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxeff.core.target import platform

UNIT = 128  # tokens of a chunk that matrix units like
WEAKEST = -60.0  # log of a gate that forgets all that 16 bits could still show


class Decay(NamedTuple):
    """between: from after j to i, 0 where j is after i. since: from the chunk's start to i. until: from after j to the chunk's end.
    All in float32, 0 across a reset."""

    between_BNHIJ: jax.Array
    since_BNHI: jax.Array
    until_BNHI: jax.Array


def in_half(x: jax.Array) -> bool:
    """Whether products may have 16-bit factors: those of matrix units have, whatever they are given, and memory holds twice as
    many. Sums are float32."""
    return platform() != "cpu" and x.dtype.itemsize == 2


def cut(x: jax.Array, size: int) -> jax.Array:
    """[B, T, ...] -> [B, N, I, ...], zeros after the end."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size)) + ((0, 0),) * (x.ndim - 2))
    return rearrange(x, "b (n i) ... -> b n i ...", i=size)


def decay(log_a_BTH: jax.Array, reset_BT: jax.Array | None, size: int) -> Decay:
    """Of gates given as log a <= 0, in chunks of `size` tokens: exp of a difference of sums. With sums below 128 x 60 a difference
    is right to 4e-4, a fifth of what the rounding of 16-bit factors leaves open; a stronger gate than exp(-60) forgets as much."""
    log_a = jnp.maximum(log_a_BTH.astype(jnp.float32), WEAKEST)
    sums_BNHI = jnp.cumsum(jnp.moveaxis(cut(log_a, size), 2, -1), axis=-1)
    same_BNIJ, first_BNI, last_BNI = jnp.tri(size, dtype=bool)[None, None], None, None
    if reset_BT is not None:
        resets_BNI = jnp.cumsum(cut(reset_BT.astype(jnp.int32), size), axis=-1)
        same_BNIJ = same_BNIJ & (resets_BNI[..., :, None] == resets_BNI[..., None, :])
        first_BNI, last_BNI = resets_BNI == 0, resets_BNI == resets_BNI[..., -1:]
    kept = lambda x, where: x if where is None else jnp.where(where[:, :, None], x, 0.0)  # noqa: E731
    between = jnp.where(same_BNIJ[:, :, None], sums_BNHI[..., :, None] - sums_BNHI[..., None, :], -jnp.inf)
    since = kept(jnp.exp(sums_BNHI), first_BNI)
    until = kept(jnp.exp(sums_BNHI[..., -1:] - sums_BNHI), last_BNI)
    return Decay(jnp.exp(between), since, until)


def by_token(x_BNHI: jax.Array) -> jax.Array:
    """[B, N, H, I] -> [B, N, I, H, 1], a factor of tokens' channels."""
    return jnp.moveaxis(x_BNHI, -1, 2)[..., None]
