"""Learned scales (Liu et al. 2022, "IA3"): of keys and values, and of what the MLP's last product reads.

y = (x W) * l    or    y = (x * l) W        l = 1 at the start
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Spec, ones
from jaxeff.core.weight import Weight, dense, einsum, terms
from jaxeff.transforms.node import Node, float_dtype, spec_of
from jaxeff.transforms.plan import Plan, not_a_matrix, rewriting, targets, weights

Side = Literal["in", "out"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IA3Weight(Node):
    """base [*L, *I, *O] times a scale for each output [*L, *O], or each input [*L, *I]."""

    base: jax.Array | Weight
    scale: jax.Array
    side: Side = dataclasses.field(default="out", metadata={"static": True})
    n_in: int = dataclasses.field(default=1, metadata={"static": True})
    n_out: int = dataclasses.field(default=1, metadata={"static": True})

    stage = "adapter"

    @property
    def n_stacked(self) -> int:
        """How many leading dimensions number equal weights."""
        return self.scale.ndim - (self.n_out if self.side == "out" else self.n_in)

    def dense(self, dtype) -> jax.Array:
        """base * scale."""
        n = self.n_stacked
        ones_in, ones_out = (1,) * self.n_in, (1,) * self.n_out
        own = self.scale.shape[n:]
        shape = (*self.scale.shape[:n], *((*ones_in, *own) if self.side == "out" else (*own, *ones_out)))
        return dense(self.base, dtype) * self.scale.reshape(shape).astype(dtype)

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """The base's product, with x or the result scaled."""
        t = terms(eqn, self.n_stacked, self.n_in)
        letters = t.outputs if self.side == "out" else t.inputs
        if t.stacked or not (t.forward or t.backward):
            return super().einsum(eqn, x)
        if set(letters) <= set(t.x):
            return einsum(eqn, scaled(x, t.x, letters, self.scale), self.base)
        return scaled(einsum(eqn, x, self.base), t.result, letters, self.scale)


def scaled(x: jax.Array, letters: str, along: str, scale: jax.Array) -> jax.Array:
    """x, whose axes are called `letters`, times a scale along some of them, in x's dtype."""
    order = sorted(range(len(along)), key=lambda i: letters.index(along[i]))
    shape = [scale.shape[along.index(letter)] if letter in along else 1 for letter in letters]
    return x * jnp.transpose(scale, order).reshape(shape).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class IA3:
    """A scale beside the weights that `rules` match, (regex, "in" or "out") on their paths; the scales alone train.

    `plan` raises UserError for a rule that matches nothing or what is no matrix, and for a weight that has an adapter already.
    """

    rules: tuple[tuple[str, Side], ...] = (("blocks/.*/mixer/(k|v)", "out"), ("blocks/.*/mlp/down", "in"))

    def __post_init__(self):
        for rule in self.rules:
            if not (isinstance(rule, tuple) and len(rule) == 2 and rule[1] in ("in", "out")):
                raise ValueError(f'IA3.rules are (regex, "in" or "out"), found {rule!r}')

    def plan(self, specs) -> Plan:
        """See `transforms.plan.Plan`."""
        known, found = weights(specs), targets(specs, self.rules, "IA3", "adapter", not_a_matrix)

        def declared(path: str, side: Side) -> IA3Weight:
            spec = spec_of(known[path])
            first = spec.n_stacked + spec.n_in
            own = slice(first, None) if side == "out" else slice(spec.n_stacked, first)
            stacked = spec.axes[: spec.n_stacked]
            scale = Spec(
                (*spec.stacked, *spec.shape[own]), (*stacked, *spec.axes[own]), ones, n_in=0, n_stacked=spec.n_stacked
            )
            return IA3Weight(known[path], scale, side, spec.n_in, len(spec.outputs))

        nodes = {path: declared(path, side) for path, side in found.items()}

        def fill(path: str, weight, key) -> IA3Weight:
            scale = jnp.ones(nodes[path].scale.shape, float_dtype(weight))
            return dataclasses.replace(nodes[path], base=weight, scale=scale)

        return rewriting(specs, nodes, fill, ("scale",))
