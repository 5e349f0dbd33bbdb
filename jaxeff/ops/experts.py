"""Products of rows with one of several matrices each. A rows, X experts, R slots, M blocks of P slots, D in, F out.

Rows are laid out in slots, those of one expert next to each other. A TPU multiplies such groups as they are
(`jax.lax.ragged_dot`); elsewhere JAX writes that as a product with all X matrices. There the slots of every expert fill whole
blocks, and each block is multiplied by its own matrix in turn (after Gale et al. 2022, "MegaBlocks"): the last block of an expert
may be partly empty, which is all that is lost.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.core.target import platform

# Of an expert's mean share, and at most: a fifth of the slots is empty where rows are few, next to none where they are many.
BLOCKS_PER_EXPERT, MAX_ROWS = 4, 512


class Layout(NamedTuple):
    """Where rows stand.

    slot: int32 [A], of each row. row: int32 [R], of each slot; an empty one has any. expert: int32 [M], of each block. size: int32
    [X], rows of each expert.
    """

    slot: jax.Array
    row: jax.Array
    expert: jax.Array
    size: jax.Array


def ranked(expert_A: jax.Array, n_experts: int) -> tuple[jax.Array, jax.Array]:
    """(how many rows before it have the same expert, int32 [A]; rows of each expert, int32 [X])."""
    order_A = jnp.argsort(expert_A, stable=True)
    size_X = jnp.zeros((n_experts,), jnp.int32).at[expert_A].add(1)
    first_X = jnp.cumsum(size_X) - size_X
    rank_A = jnp.arange(len(order_A), dtype=jnp.int32) - first_X[expert_A[order_A]]
    return jnp.zeros_like(rank_A).at[order_A].set(rank_A, unique_indices=True), size_X


def layout(expert_A: jax.Array, n_experts: int) -> Layout:
    """Slots for rows that go to these experts, each int32 in [0, X)."""
    (A,) = expert_A.shape
    P = 1 if platform() == "tpu" else max(1, min(MAX_ROWS, -(-A // (BLOCKS_PER_EXPERT * n_experts))))
    M = (A + min(A, n_experts) * (P - 1)) // P  # as many as may be needed
    rank_A, size_X = ranked(expert_A, n_experts)
    blocks_X = -(-size_X // P)
    end_X = jnp.cumsum(blocks_X)
    expert_M = jnp.sum(jnp.arange(M, dtype=jnp.int32)[:, None] >= end_X[None], axis=1, dtype=jnp.int32)
    slot_A = (end_X - blocks_X)[expert_A] * P + rank_A
    row_R = jnp.zeros((M * P,), jnp.int32).at[slot_A].set(jnp.arange(A, dtype=jnp.int32), unique_indices=True)
    return Layout(slot_A, row_R, jnp.minimum(expert_M, n_experts - 1), size_X)


def grouped(x_RD: jax.Array, w_XDF: jax.Array, where: Layout) -> jax.Array:
    """Every slot times the matrix of its expert, in x's dtype. Reverse mode only."""
    if platform() == "tpu":
        return jax.lax.ragged_dot(x_RD, w_XDF.astype(x_RD.dtype), where.size)
    x_MPD = x_RD.reshape(len(where.expert), -1, x_RD.shape[-1])
    return blocked(x_MPD, jnp.asarray(w_XDF), where.expert).reshape(len(x_RD), -1)


def grouped_reference(x_RD: jax.Array, w_XDF: jax.Array, expert_R: jax.Array) -> jax.Array:
    """Each row times a matrix of its own."""
    return jnp.einsum("rd,rdf->rf", x_RD, w_XDF.astype(x_RD.dtype)[expert_R])


@jax.custom_vjp
def blocked(x_MPD: jax.Array, w_XDF: jax.Array, expert_M: jax.Array) -> jax.Array:
    """[M, P, F]: x_PD @ w[expert] of each block. Sums are float32."""
    return jax.lax.map(lambda each: _product(each[0], w_XDF[each[1]]), (x_MPD, expert_M))


def _forward(x_MPD, w_XDF, expert_M):
    return blocked(x_MPD, w_XDF, expert_M), (x_MPD, w_XDF, expert_M)


def _backward(residuals, dy_MPF):
    """One block after the other adds to the gradient of its matrix alone; JAX's own adds one of all matrices at every block."""
    x_MPD, w_XDF, expert_M = residuals

    def turn(dw_XDF, each):
        x_PD, dy_PF, expert = each
        dw_DF = jnp.matmul(x_PD.T, dy_PF, preferred_element_type=jnp.float32)
        return dw_XDF.at[expert].add(dw_DF), _product(dy_PF, w_XDF[expert].T)

    dw_XDF, dx_MPD = jax.lax.scan(turn, jnp.zeros(w_XDF.shape, jnp.float32), (x_MPD, dy_MPF, expert_M))
    return dx_MPD, dw_XDF.astype(w_XDF.dtype), None


blocked.defvjp(_forward, _backward)


def _product(x_PD, w_DF):
    return jnp.matmul(x_PD, w_DF.astype(x_PD.dtype), preferred_element_type=jnp.float32).astype(x_PD.dtype)
