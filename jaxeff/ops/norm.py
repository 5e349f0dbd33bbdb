"""Normalisation over the last axis, or several. D model (or any last axis).

Computed in float32 whatever the input, returned in the input's dtype. A scale or bias may have any trailing shape of x,
so that one call serves a norm of the model width ([D]) and one per head ([H, C]).
"""

import jax
import jax.numpy as jnp


def _like(x: jax.Array, w_D: jax.Array) -> jax.Array:
    """w in float32 with leading axes of size 1 up to x's rank."""
    return w_D.astype(jnp.float32).reshape((1,) * (x.ndim - w_D.ndim) + w_D.shape)


def _last(axes: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(-axes, 0)) if isinstance(axes, int) else axes


def rms_norm(
    x: jax.Array, scale_D: jax.Array | None = None, eps: float = 1e-6, axes: int | tuple[int, ...] = 1
) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale (Zhang and Sennrich 2019). x [..., D]; result in x's shape and dtype.

    axes: over which axes the mean is taken, or over how many of the last.
    """
    y, over = x.astype(jnp.float32), _last(axes)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=over, keepdims=True) + eps)
    if scale_D is not None:
        y = y * _like(y, scale_D)
    return y.astype(x.dtype)


def layer_norm(
    x: jax.Array,
    scale_D: jax.Array | None = None,
    bias_D: jax.Array | None = None,
    eps: float = 1e-5,
    axes: int | tuple[int, ...] = 1,
) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) * scale + bias (Ba et al. 2016). x [..., D]; result in x's shape and dtype.

    axes: over which axes mean and variance are taken, or over how many of the last.
    """
    y, over = x.astype(jnp.float32), _last(axes)
    y = y - jnp.mean(y, axis=over, keepdims=True)
    # The variance is taken of the centred values: mean(x^2) - mean(x)^2 cancels when the mean is large.
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=over, keepdims=True) + eps)
    if scale_D is not None:
        y = y * _like(y, scale_D)
    if bias_D is not None:
        y = y + _like(y, bias_D)
    return y.astype(x.dtype)
