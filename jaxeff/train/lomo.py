"""Optimizers whose updates are made within the backward pass, where gradients end once they are used. I inputs, O outputs.

LOMO (Lv et al. 2023, "Full Parameter Fine-tuning for Large Language Models with Limited Resources") is W <- W - lr G.

AdaLomo (Lv et al. 2023, "AdaLomo: Low-memory Optimization with Adaptive Learning Rate") keeps I + O numbers of a matrix:

    r <- b r + (1 - b) mean_O(G^2);    c <- b c + (1 - b) mean_I(G^2);    b = 1 - t^-b2
    v = r c^T / mean(r);    u = G / sqrt(v);    W <- W - lr max(eps, rms(W)) u / max(1, rms(u))

and all of v for what is no matrix. Means and rms are of one layer's weight. Neither needs a norm of all gradients.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxeff.core.errors import UserError
from jaxeff.core.spec import Spec
from jaxeff.models.descent import Descent, sum_of_squares

TINY = 1e-30  # added to squares


class Rule(NamedTuple):
    """An optimizer that looks at one weight at a time. init(spec, weight) -> what it keeps of it, None for nothing; direction(spec,
    weight, gradient, kept, t) -> (direction to descend, kept) of update number t, float32, from 1."""

    init: Callable[[Spec, Any], Any]
    direction: Callable[..., tuple[jax.Array, Any]]


class LomoState(NamedTuple):
    """count: int32, updates so far. kept: the rule's, at the paths of the weights."""

    count: jax.Array
    kept: Any


class Within(NamedTuple):
    """An optimizer that does the backward pass itself. init(params) -> LomoState. update(f, params, state, lr), for a function
    f(params, descent) -> (loss, more) that runs the model with `descent` in its Ctx, -> (loss, more, params, state, norm of all
    gradients, whether all was finite).

    A loss that is not finite changes nothing. Of gradients that are not finite, nothing of the layer that has them, of those
    before it and of what is outside loops is changed; the layers after it are new already.
    """

    init: Callable[[Any], LomoState]
    update: Callable[..., tuple[Any, ...]]


class _Leaf(NamedTuple):
    value: jax.Array
    kept: Any


def plain() -> Rule:
    """The gradient itself."""
    return Rule(lambda spec, p: None, lambda spec, p, g, kept, t: (g, None))


def adaptive(b2: float, eps: float) -> Rule:
    """AdaLomo's; see the module docstring."""

    def init(spec: Spec, p):
        if not spec.is_matrix:
            return jnp.zeros(p.shape, p.dtype)
        i, o = math.prod(spec.inputs), math.prod(spec.outputs)
        return {"rows": jnp.zeros((*spec.stacked, i), p.dtype), "columns": jnp.zeros((*spec.stacked, o), p.dtype)}

    def direction(spec: Spec, p, g, kept, t):
        b = (1 - t ** jnp.float32(-b2)).astype(p.dtype)
        mean = lambda old, new: b * old + (1 - b) * new
        square = jnp.square(g) + TINY
        if spec.is_matrix:
            square = square.reshape(*spec.stacked, math.prod(spec.inputs), math.prod(spec.outputs))
            r, c = mean(kept["rows"], jnp.mean(square, -1)), mean(kept["columns"], jnp.mean(square, -2))
            kept = {"rows": r, "columns": c}
            r = r / jnp.mean(r, -1, keepdims=True)
            root = (jnp.sqrt(r)[..., None] * jnp.sqrt(c)[..., None, :]).reshape(p.shape)
        else:
            kept = mean(kept, square)
            root = jnp.sqrt(kept)
        u = g / root
        return u * jnp.maximum(eps, _rms(spec, p)) / jnp.maximum(1, _rms(spec, u)), kept

    return Rule(init, direction)


def _rms(spec: Spec, x: jax.Array) -> jax.Array:
    """Of each weight of a stack, ready to be multiplied with it."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=tuple(range(spec.n_stacked, x.ndim)), keepdims=True))


RULES: dict[str, Callable[[float, float], Rule]] = {"lomo": lambda b2, eps: plain(), "adalomo": adaptive}


def scale_by_rule(rule: Rule, specs) -> optax.GradientTransformation:
    """A rule on gradients that are all there; they have the structure of `specs`."""

    def init(params):
        return LomoState(jnp.zeros((), jnp.int32), jax.tree.map(rule.init, specs, params))

    def update(grads, state, params=None):
        t = (state.count + 1).astype(jnp.float32)
        leaves = jax.tree.map(
            lambda spec, p, g, kept: _Leaf(*rule.direction(spec, p, g, kept, t)), specs, params, grads, state.kept
        )
        direction, kept = _parts(leaves)
        return direction, LomoState(state.count + 1, kept)

    return optax.GradientTransformation(init, update)


def within(rule: Rule, specs, looped: Sequence[str], decay: Callable[[Spec], float]) -> Within:
    """A rule as part of the backward pass for the blocks numbered `looped`, and after it for all other weights, which have
    gradients. decay: of a weight's Spec, its share that is subtracted times the learning rate."""

    def moved(specs, params, grads, kept, told):
        def one(spec: Spec, p, g, kept) -> _Leaf:
            u, kept = rule.direction(spec, p, g.astype(p.dtype), kept, told["t"])
            share = decay(spec)
            u = u + jnp.asarray(share, p.dtype) * p if share else u
            return _Leaf(p - told["lr"].astype(p.dtype) * u, kept)

        return _parts(jax.tree.map(one, specs, params, grads, kept))

    def split(tree):
        """(blocks in loops, all else)"""
        blocks = tree["blocks"]
        rest = {name: block for name, block in blocks.items() if name not in looped}
        return {name: blocks[name] for name in looped}, tree | {"blocks": rest}

    def join(inside, outside):
        return outside | {"blocks": outside["blocks"] | inside}

    stacked, others = split(specs)
    layer = jax.tree.map(_unstacked, stacked)

    def in_loop(params, grads, kept, told):
        return moved({name: layer[name] for name in params}, params, grads, kept, told)

    def update(f, params, state: LomoState, lr: jax.Array):
        told = {"lr": lr, "t": (state.count + 1).astype(jnp.float32)}
        kept, kept_outside = split(state.kept)
        loss, backward, more = jax.vjp(f, params, Descent(kept, told, jnp.float32(0), in_loop), has_aux=True)
        found, given = backward(jnp.where(jnp.isfinite(loss), jnp.ones_like(loss), jnp.nan))
        inside, grads = split(found)
        total = given.squares + sum_of_squares(grads)
        ok = jnp.isfinite(loss) & jnp.isfinite(total)
        old = split(params)[1], kept_outside
        new = moved(others, old[0], grads, kept_outside, told)
        outside, kept_outside = jax.tree.map(lambda new, old: jnp.where(ok, new, old), new, old)
        state = LomoState(state.count + ok.astype(jnp.int32), join(given.kept, kept_outside))
        return loss, more, join(inside, outside), state, jnp.sqrt(total), ok

    return Within(scale_by_rule(rule, specs).init, update)


def check(experiment) -> None:
    """Raises UserError when an experiment asks an optimizer of this file for what it cannot do."""
    name = experiment.optim.name
    if name not in RULES:
        return
    why = "its updates are made within the backward pass"
    if experiment.optim.clip is not None:
        raise UserError(f"{name} cannot clip by global norm: {why}, before the norm is known; set optim.clip=none")
    if experiment.train.accumulate > 1:
        raise UserError(f"{name} cannot accumulate: {why}, and no gradients are left to add; set train.accumulate=1")
    if experiment.precision == "float16":
        raise UserError(f"{name} has no loss scale for float16: {why}; set precision=bfloat16")
    if experiment.transforms or experiment.trainable is not None:
        raise UserError(
            f"{name} trains all weights, as they are: {why}; with transforms or trainable, take optim.name=sgd"
        )


def _parts(leaves) -> tuple[Any, Any]:
    is_leaf = lambda x: isinstance(x, _Leaf)
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], leaves, is_leaf=is_leaf) for i in range(2))


def _unstacked(spec: Spec) -> Spec:
    """Of one layer of a stack."""
    return dataclasses.replace(spec, shape=spec.shape[1:], axes=spec.axes[1:], n_stacked=spec.n_stacked - 1)
