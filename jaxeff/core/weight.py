"""Layers touch a weight only through `einsum`, `take` or `dense`.

A weight is an array, or a small registered pytree that knows how to do these three things (a low-rank pair, packed codes
with scales, an adapter beside its base). Layers never learn which one they got.
"""

import abc

import jax
import jax.numpy as jnp

from jaxeff.core import matmul


class Weight(abc.ABC):
    """A weight that is not a plain array. Subclasses are registered pytrees whose leaves are arrays (or Specs)."""

    @abc.abstractmethod
    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`jnp.einsum(eqn, x, dense weight)` in x's dtype."""

    @abc.abstractmethod
    def take(self, ids: jax.Array, dtype) -> jax.Array:
        """Rows `ids` of the weight's first dimension: shape `ids.shape + weight.shape[1:]`."""

    @abc.abstractmethod
    def dense(self, dtype) -> jax.Array:
        """The weight as a plain array."""


def einsum(eqn: str, x: jax.Array, w) -> jax.Array:
    """`jnp.einsum(eqn, x, w)` in x's dtype: the activation's dtype is the compute dtype."""
    if isinstance(w, Weight):
        return w.einsum(eqn, x)
    return matmul.einsum(eqn, x, w)


def take(w, ids: jax.Array, dtype) -> jax.Array:
    """Rows of an embedding matrix, cast to `dtype`."""
    if isinstance(w, Weight):
        return w.take(ids, dtype)
    return jnp.take(w, ids, axis=0, mode="clip").astype(dtype)


def dense(w, dtype) -> jax.Array:
    """The weight as a plain array of `dtype`."""
    return w.dense(dtype) if isinstance(w, Weight) else w.astype(dtype)
