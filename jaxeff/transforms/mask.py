"""Weights of which a part is zero, by magnitude (Han et al. 2015; N:M as in Mishra et al. 2021). I inputs, O outputs of a weight.

    W' = mask * W        the mask keeps the largest |W|, of the whole weight or of each M inputs in a row

A fixed mask is a node: the weight under it goes on training, what is masked gets no gradient. A scheduled one (Zhu and Gupta 2017)
grows while the weight trains, which itself is zero where it is masked, and stays an array:

    share at step t = share (1 - (1 - min(1, t / (until steps)))^3)
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError
from jaxeff.core.spec import Spec, ones
from jaxeff.core.weight import Weight, dense
from jaxeff.transforms.node import Node, innermost
from jaxeff.transforms.plan import Plan, map_weights, not_a_matrix, rewriting, targets, weights

PATTERN = re.compile(r"(\d+):(\d+)")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskWeight(Node):
    """base where kept, else 0. base: any weight [*L, *I, *O]; kept: bool of the same shape."""

    base: jax.Array | Weight
    kept: jax.Array

    stage = "mask"

    def dense(self, dtype) -> jax.Array:
        """The base, zero where it is not kept."""
        return jnp.where(self.kept, dense(self.base, dtype), jnp.zeros((), dtype))


@dataclasses.dataclass(frozen=True)
class Mask:
    """Zeros in the weights that `rules` match, (regex, how many) on their paths: the share of zeros, 0.5, or "2:4", two kept of
    every four inputs in a row.

    until: the part of the run in which the share of zeros grows from none; 0 masks at once, by the weights as they are, for good.
    every: steps between two looks at the weights while it grows; a number that is zero stays so.

    `plan` raises UserError for a rule that matches nothing or what is no matrix, for a weight that is in few bits or has an adapter
    or a mask already, and for inputs that M does not divide.
    """

    rules: tuple[tuple[str, float | str], ...] = (("blocks/.*/mlp/(up|gate|down)", 0.5),)
    until: float = 0.0
    every: int = 10

    def __post_init__(self):
        if not 0 <= self.until <= 1:
            raise ValueError(f"Mask.until is a part of the run, in [0, 1], found {self.until}")
        if self.every < 1:
            raise ValueError(f"Mask.every must be at least 1, found {self.every}")
        for rule in self.rules:
            if not (isinstance(rule, tuple) and len(rule) == 2 and _possible(rule[1])):
                raise ValueError(
                    f'Mask.rules are (regex, share of zeros in [0, 1)) or (regex, "N:M") with 0 < N < M, found {rule!r}'
                )

    def plan(self, specs) -> Plan:
        """See `transforms.plan.Plan`."""
        known = weights(specs)
        found = targets(specs, self.rules, "Mask", "mask", not_a_matrix)

        for path in found:
            innermost(functools.partial(_check, path, setting=found[path]), known[path])
        if self.until:
            return self._scheduled(specs, {path: known[path] for path in found}, found)

        def declared(spec: Spec) -> MaskWeight:
            return MaskWeight(spec, dataclasses.replace(spec, init=ones, dtype=jnp.bool_))

        def fill(path: str, weight, key):
            return innermost(lambda w, spec: MaskWeight(w, kept(w, spec, found[path])), weight, known[path])

        return rewriting(specs, {path: innermost(declared, known[path]) for path in found}, fill)

    def _scheduled(self, specs, declared, found) -> Plan:
        """The plan of masks that grow; they are kept between steps, as the weights themselves do not tell a zero for good."""

        def memory(params):
            chosen = {path: w for path, w in weights(params).items() if path in declared}
            idle = [path for path in declared if path not in chosen or None in _leaves(chosen[path])]
            if idle:
                raise UserError(f"Mask(until={self.until}) masks weights while they train, and {idle[0]} does not")
            return {path: jax.tree.map(lambda x: jnp.ones(x.shape, bool), w) for path, w in chosen.items()}

        def after(params, grads, memory, step, steps):
            t = step.astype(jnp.float32) / (self.until * steps.astype(jnp.float32))
            grown = 1 - (1 - jnp.clip(t, 0, 1)) ** 3
            last = jnp.ceil(self.until * steps.astype(jnp.float32)).astype(step.dtype)
            look = (step <= last) & ((step % self.every == 0) | (step == last))

            def at(path: str, w, old):
                def one(w, spec, old):
                    new = lambda w: kept(w, spec, found[path], grown)
                    return jax.lax.cond(look, new, lambda w: old, jnp.where(old, w, 0))

                return innermost(one, w, declared[path], old)

            masks = {path: at(path, w, memory[path]) for path, w in weights(params).items() if path in declared}
            masked = lambda w, mask: jax.tree.map(lambda x, m: jnp.where(m, x, jnp.zeros((), x.dtype)), w, mask)
            return map_weights(lambda path, w: masked(w, masks[path]) if path in masks else w, params), masks

        return Plan(specs, lambda params, key: params, lambda params: params, memory=memory, after=after)


def kept(w: jax.Array, spec: Spec, setting: float | str, grown: jax.Array | float = 1.0) -> jax.Array:
    """Which numbers of w [*L, *I, *O] stay: bool of the same shape. Of equal ones the first stay. grown: how much of what is to go
    goes already, from 0 to 1."""
    size = jnp.abs(w.astype(jnp.float32)).reshape(*spec.stacked, math.prod(spec.inputs), -1)
    if isinstance(setting, str):
        n, m = _ratio(setting)
        group = size.reshape(*spec.stacked, -1, m, size.shape[-1])
        return _largest(group, _left(m, m - n, grown), axis=-2).reshape(w.shape)
    flat = size.reshape(*spec.stacked, -1)
    return _largest(flat, _left(flat.shape[-1], round(setting * flat.shape[-1]), grown), axis=-1).reshape(w.shape)


def _left(n: int, zeros: int, grown) -> jax.Array | int:
    """How many of n stay, of which `zeros` are to go in the end."""
    return n - (zeros if isinstance(grown, float) else jnp.round(grown * zeros).astype(jnp.int32))


def _leaves(weight) -> list:
    return jax.tree.leaves(weight, is_leaf=lambda x: x is None)


def _largest(x: jax.Array, n: jax.Array | int, axis: int) -> jax.Array:
    """Where the n largest along an axis stand."""
    order = jnp.argsort(-x, axis=axis, stable=True)
    return jnp.argsort(order, axis=axis) < n


def _ratio(text: str) -> tuple[int, int]:
    n, m = PATTERN.fullmatch(text).groups()
    return int(n), int(m)


def _possible(setting) -> bool:
    if isinstance(setting, str):
        return PATTERN.fullmatch(setting) is not None and 0 < _ratio(setting)[0] < _ratio(setting)[1]
    return isinstance(setting, (int, float)) and not isinstance(setting, bool) and 0 <= setting < 1


def _check(path: str, spec: Spec, setting) -> Spec:
    inputs = math.prod(spec.inputs)
    if isinstance(setting, str) and inputs % _ratio(setting)[1]:
        m = _ratio(setting)[1]
        near = [n for n in range(2, m + 1) if inputs % n == 0]
        raise UserError(
            f"Mask: {path} has {inputs} inputs, which {m} of {setting!r} does not divide"
            + (f"; {near[-1]} does" if near else "")
        )
    return spec
