"""Norms of gated values by groups of heads (Mamba-2). B batch, T time, G groups, H heads, E head dim."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxeff.core.target import platform

LANES = 128  # of a TPU's registers


def gated_norm(norm: Callable, params, y_BTHE: jax.Array, z_BTHE: jax.Array, groups: int = 1, first: bool = False):
    """norm(y silu(z)), or first: norm(y) silu(z); over the channels of each of `groups` groups of heads. In y's shape and dtype.

    norm(params, x, axes): x normalised over these axes. params: a tree of [H, E] weights.
    """
    # A TPU has channels of narrow heads lie with time last. Told so, its compiler finds the gradients of y and z in one pass; with
    # more than one group it makes more passes than before.
    time_last = platform() == "tpu" and y_BTHE.shape[3] < LANES and groups == 1
    time, over = (3, (-3, -2)) if time_last else (1, (-2, -1))
    whole, parts, weights = ("(g h) e t", "g h e t", "g h e 1") if time_last else ("t (g h) e", "t g h e", "g h e")

    def by_group(x_BTHE):
        return rearrange(jnp.moveaxis(x_BTHE.astype(jnp.float32), 1, time), f"b {whole} -> b {parts}", g=groups)

    y, gate = by_group(y_BTHE), jax.nn.silu(by_group(z_BTHE))
    params = jax.tree.map(lambda w: rearrange(w, f"(g h) e -> {weights}", g=groups), params)
    y = norm(params, y, over) * gate if first else norm(params, y * gate, over)
    return jnp.moveaxis(rearrange(y, f"b {parts} -> b {whole}"), time, 1).astype(y_BTHE.dtype)
