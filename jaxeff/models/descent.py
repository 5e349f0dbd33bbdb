"""Repeated blocks whose weights are updated within the backward pass (Lv et al. 2023, LOMO). R repeats, B batch, T time, D model.

The forward pass keeps each repeat's input alone. The backward pass is one loop from the last repeat to the first that carries
the stacked weights: each turn takes a layer out of them, finds its gradients and puts the updated layer where it lay, so that the
gradients of no more than one repeat are ever there. What stands for the gradient of the weights in the end are their new values.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.core.tree import combine, partition


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Descent:
    """What becomes of the weights of repeated stages during the backward pass, in place of giving their gradients.

    rule(weights, gradients, kept, told) -> (weights, kept), of one repeat, all by the blocks' numbers. kept: what the rule keeps
    between steps, by the blocks' numbers, floats stacked over the repeats. told: floats that the rule reads, such as a learning
    rate. squares: a zero.

    To be differentiated by: the cotangents of the blocks' weights and of `kept` are their new values, that of `squares` is the sum
    of all squared gradients. From the first layer on whose gradients, or those of its output, are not finite, nothing is changed
    and the sum is NaN. A loss that is to change nothing is given the cotangent NaN. The loss must run the stack once.
    """

    kept: Any
    told: Any
    squares: jax.Array
    rule: Callable[..., tuple[Any, Any]] = dataclasses.field(metadata={"static": True})


def descend(
    body: Callable[..., tuple[jax.Array, Any]], descent: Descent, outer, x_BTD: jax.Array, layers, repeats: int
):
    """(x_BTD after all repeats, aux stacked over them) of `body(outer, x_BTD, layer, repeat) -> (x_BTD, aux)`.

    layers: weights by the blocks' numbers, stacked over the repeats, which get new values for cotangents. outer: whatever else
    the body reads, which has gradients; the body closes over no array.
    """
    descent = dataclasses.replace(descent, kept={name: descent.kept[name] for name in layers})
    floats, others = partition(outer, lambda _, leaf: jnp.issubdtype(leaf.dtype, jnp.inexact))

    def forward(layers, x_BTD, floats, others, descent):
        def turn(x_BTD, layer_i):
            y_BTD, aux = body(combine(floats, others), x_BTD, *layer_i)
            return y_BTD, (aux, x_BTD)

        y_BTD, (aux, x_RBTD) = jax.lax.scan(turn, x_BTD, (layers, jnp.arange(repeats)))
        return (y_BTD, aux), (layers, x_RBTD, floats, others, descent)

    def backward(kept, cotangents):
        layers, x_RBTD, floats, others, descent = kept
        dy_BTD, daux = cotangents

        def turn(done, carry):
            layers, moments, dy_BTD, dfloats, total, ok = carry
            i = repeats - 1 - done
            layer = _take(layers, i)
            _, vjp = jax.vjp(
                lambda layer, x_BTD, floats: body(combine(floats, others), x_BTD, layer, i),
                layer, _take(x_RBTD, i), floats,
            )  # fmt: skip
            grads, dx_BTD, more = vjp((dy_BTD, _take(daux, i)))
            total = total + sum_of_squares(grads)
            ok = ok & jnp.isfinite(total)

            def update(layers, moments):
                new = descent.rule(_take(layers, i), grads, _take(moments, i), descent.told)
                return _put(layers, new[0], i), _put(moments, new[1], i)

            layers, moments = jax.lax.cond(ok, update, lambda *same: same, layers, moments)
            return layers, moments, dx_BTD, jax.tree.map(jnp.add, dfloats, more), total, ok

        zeros = jax.tree.map(jnp.zeros_like, floats)
        start = (layers, descent.kept, dy_BTD, zeros, jnp.float32(0), jnp.all(jnp.isfinite(dy_BTD)))
        layers, moments, dx_BTD, dfloats, total, ok = jax.lax.fori_loop(0, repeats, turn, start)
        dx_BTD = jnp.where(ok, dx_BTD, jnp.full((), jnp.nan, dx_BTD.dtype))
        told = jax.tree.map(jnp.zeros_like, descent.told)
        given = dataclasses.replace(descent, kept=moments, told=told, squares=jnp.where(ok, total, jnp.nan))
        return layers, dx_BTD, dfloats, None, given

    run = jax.custom_vjp(lambda *args: forward(*args)[0])
    run.defvjp(forward, backward)
    return run(layers, x_BTD, floats, others, descent)


def sum_of_squares(tree) -> jax.Array:
    """Of all numbers of a tree, float32."""
    return sum((jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)), jnp.float32(0))


def _take(tree, i):
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, 0, keepdims=False), tree)


def _put(tree, layer, i):
    return jax.tree.map(lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, i, 0), tree, layer)
