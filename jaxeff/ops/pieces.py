"""A recurrence over a long text in pieces that a CPU's cache holds. B batch, T time, N pieces, P tokens of a piece.

Chunked forms write tens of numbers for each they read. Over a whole long text these go through main memory; over a piece they stay
in the cache, and the backward pass, which makes each piece again from the state that entered it, holds those of one piece.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxeff.core.target import platform

CACHED = 1 << 16  # numbers of one array of a piece: a quarter of a megabyte in float32


def piece(numbers: int, T: int, multiple: int) -> int:
    """P, a multiple of `multiple`, for arrays of `numbers` a token; T and more where there is no cache to fill."""
    if platform() != "cpu":
        return T
    return max(1, CACHED // (numbers * multiple)) * multiple


def in_pieces(f: Callable, arrays: tuple, state, size: int, recompute: bool = True):
    """f(*arrays, state) -> (o [B, T, ...], state), applied to `size` tokens of all arrays [B, T, ...] at a time.

    Where `size` is less than T, the last piece is filled up with zeros, which must leave the state as it is, and each piece is
    made again in the backward pass. recompute: whether a single one is, too.
    """
    leaves, structure = jax.tree.flatten(arrays)  # None among them is an empty tree
    T = leaves[0].shape[1]
    if size >= T:
        return (jax.checkpoint(f) if recompute else f)(*arrays, state)

    def cut(x):
        x = jnp.pad(x, ((0, 0), (0, -T % size)) + ((0, 0),) * (x.ndim - 2))
        return rearrange(x, "b (n p) ... -> n b p ...", p=size)

    @jax.checkpoint
    def step(state, leaves):
        o, state = f(*structure.unflatten(leaves), state)
        return state, o

    state, o = jax.lax.scan(step, state, [cut(x) for x in leaves])
    return rearrange(o, "n b p ... -> b (n p) ...")[:, :T], state
