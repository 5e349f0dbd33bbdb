"""Rows and their experts' matrices: the layout of slots, and products in it with their gradients, against one matrix a row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.target import lowering_for
from jaxeff.ops.experts import grouped, grouped_reference, layout, ranked
from tests.closeness import assert_close

D, F = 5, 7
# Rows and experts: one row, fewer rows than experts, blocks that do not divide, several blocks an expert, the largest blocks.
SIZES = {"one": (1, 3), "few": (4, 6), "odd": (41, 3), "many": (130, 5), "one expert": (30, 1), "largest": (5000, 2)}


def rows(name, seed=0):
    """(x_AD, w_XDF, expert_A, weights of a sum); an expert that nobody goes to, where there are several."""
    A, X = SIZES[name]
    r = np.random.default_rng(seed)
    draw = lambda *shape: r.standard_normal(shape, np.float32)
    return draw(A, D), draw(X, D, F), r.integers(0, max(X - 1, 1), A).astype(np.int32), draw(A, F)


@functools.partial(jax.jit, static_argnums=(0, 1))
def output_and_gradients(product, dtype, x_AD, w_XDF, expert_A, weigh_AF):
    def loss(x_AD, w_XDF):
        y_AF = product(x_AD.astype(dtype), w_XDF, expert_A).astype(jnp.float32)
        return jnp.sum(weigh_AF * y_AF), y_AF

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(x_AD, w_XDF)


def by_blocks(x_AD, w_XDF, expert_A):
    where = layout(expert_A, len(w_XDF))
    return grouped(x_AD[where.row], w_XDF, where)[where.slot]


def as_on_a_tpu(x_AD, w_XDF, expert_A):
    with lowering_for("tpu"):
        return by_blocks(x_AD, w_XDF, expert_A)


def test_ranks_count_equals_before():
    rank_A, size_X = ranked(jnp.array([2, 0, 2, 2, 0]), 4)
    assert rank_A.tolist() == [0, 0, 1, 2, 1] and size_X.tolist() == [2, 0, 3, 0]


@pytest.mark.parametrize("name", SIZES)
def test_every_row_has_a_slot_of_its_own_in_a_block_of_its_expert(name):
    _, _, expert_A, _ = rows(name)
    where = jax.tree.map(np.asarray, layout(jnp.asarray(expert_A), SIZES[name][1]))
    P = len(where.row) // len(where.expert)
    assert len(set(where.slot)) == len(expert_A) and np.array_equal(where.row[where.slot], np.arange(len(expert_A)))
    assert np.array_equal(where.expert[where.slot // P], expert_A)
    assert len(where.row) <= 1.25 * len(expert_A) + SIZES[name][1]


@pytest.mark.parametrize("product", [by_blocks, as_on_a_tpu])
@pytest.mark.parametrize("name", SIZES)
def test_products_and_gradients_are_those_of_one_matrix_a_row(name, product):
    arguments = jnp.float32, *rows(name)
    assert_close(output_and_gradients(product, *arguments), output_and_gradients(grouped_reference, *arguments))


def test_sixteen_bits_sum_in_thirty_two():
    x, w, expert_A, weigh = rows("many")
    found = output_and_gradients(by_blocks, jnp.bfloat16, x, w, expert_A, weigh)
    assert_close(found, output_and_gradients(grouped_reference, jnp.float32, x, w, expert_A, weigh), 8e-3)
    assert found[1][1].dtype == jnp.float32


@pytest.mark.parametrize("product", [by_blocks, as_on_a_tpu])
def test_several_layers_at_once(product):
    """As `jax.vmap` over layers or seeds has it, with gradients."""
    layers = [rows("odd", seed) for seed in (0, 1)]
    together = jax.vmap(functools.partial(output_and_gradients, product, jnp.float32))
    found = together(*map(np.stack, zip(*layers, strict=True)))
    one = [output_and_gradients(grouped_reference, jnp.float32, *layer) for layer in layers]
    assert_close(found, jax.tree.map(lambda *leaves: np.stack(leaves), *one))
