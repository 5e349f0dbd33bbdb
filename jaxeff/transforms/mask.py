"""Weights of which a part is zero, by magnitude (Han et al. 2015; N:M as in Mishra et al. 2021). I inputs, O outputs of a weight.

    W' = mask * W        the mask keeps the largest |W|, of the whole weight or of each M inputs in a row

The weight under the mask goes on training; what is masked gets no gradient.
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
from jaxeff.transforms.plan import Plan, not_a_matrix, rewriting, targets, weights

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

    `plan` raises UserError for a rule that matches nothing or what is no matrix, for a weight that is in few bits or has an adapter
    or a mask already, and for inputs that M does not divide.
    """

    rules: tuple[tuple[str, float | str], ...] = (("blocks/.*/mlp/(up|gate|down)", 0.5),)

    def __post_init__(self):
        for rule in self.rules:
            if not (isinstance(rule, tuple) and len(rule) == 2 and _possible(rule[1])):
                raise ValueError(
                    f'Mask.rules are (regex, share of zeros in [0, 1)) or (regex, "N:M") with 0 < N < M, found {rule!r}'
                )

    def plan(self, specs) -> Plan:
        """See `transforms.plan.Plan`."""
        known = weights(specs)
        found = targets(specs, self.rules, "Mask", "mask", not_a_matrix)

        def declared(path: str, spec: Spec) -> MaskWeight:
            _check(path, spec, found[path])
            return MaskWeight(spec, dataclasses.replace(spec, init=ones, dtype=jnp.bool_))

        def fill(path: str, weight, key):
            return innermost(lambda w, spec: MaskWeight(w, kept(w, spec, found[path])), weight, known[path])

        nodes = {path: innermost(functools.partial(declared, path), known[path]) for path in found}
        return rewriting(specs, nodes, fill)


def kept(w: jax.Array, spec: Spec, setting: float | str) -> jax.Array:
    """Which numbers of w [*L, *I, *O] stay: bool of the same shape. Of equal ones the first stay."""
    size = jnp.abs(w.astype(jnp.float32)).reshape(*spec.stacked, math.prod(spec.inputs), -1)
    if isinstance(setting, str):
        n, m = _ratio(setting)
        group = size.reshape(*spec.stacked, -1, m, size.shape[-1])
        return _largest(group, n, axis=-2).reshape(w.shape)
    flat = size.reshape(*spec.stacked, -1)
    return _largest(flat, flat.shape[-1] - round(setting * flat.shape[-1]), axis=-1).reshape(w.shape)


def _largest(x: jax.Array, n: int, axis: int) -> jax.Array:
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


def _check(path: str, spec: Spec, setting) -> None:
    inputs = math.prod(spec.inputs)
    if isinstance(setting, str) and inputs % _ratio(setting)[1]:
        m = _ratio(setting)[1]
        near = [n for n in range(2, m + 1) if inputs % n == 0]
        raise UserError(
            f"Mask: {path} has {inputs} inputs, which {m} of {setting!r} does not divide"
            + (f"; {near[-1]} does" if near else "")
        )
