"""Bottleneck adapters (Houlsby et al. 2019; Pfeiffer et al. 2020; He et al. 2022). R width, I inputs, O outputs of a weight.

    y = h + act(h D) U,  h = x W    in sequence        y = x W + s act(x D) U    in parallel        U = 0 at the start

They stand on the product that a sublayer ends in: on the mixer's and the MLP's last weights as in Houlsby, on the MLP's alone as in
Pfeiffer. A bias of the sublayer comes after the adapter.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError, lookup
from jaxeff.core.spec import Spec, stack, zeros
from jaxeff.core.weight import Weight, einsum, terms
from jaxeff.mixers.mlp import ACTIVATIONS
from jaxeff.transforms.node import Node, drawn, spec_of
from jaxeff.transforms.plan import Plan, not_a_matrix, rewriting, targets, weights
from jaxeff.transforms.rank import Rules, check_rules


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdapterWeight(Node):
    """A product with what is added to it. base [*L, *I, *O]; down [*L, *H, R], H being O in sequence and I in parallel; up
    [*L, R, *O]."""

    base: jax.Array | Weight
    down: jax.Array
    up: jax.Array
    activation: str = dataclasses.field(metadata={"static": True})
    parallel: bool = dataclasses.field(metadata={"static": True})
    scale: float = dataclasses.field(metadata={"static": True})
    n_in: int = dataclasses.field(default=1, metadata={"static": True})

    stage = "adapter"

    def dense(self, dtype) -> jax.Array:
        """Raises UserError: an activation is no part of a matrix."""
        raise UserError(
            "an adapter with an activation is no matrix: it can neither be merged nor used in other products"
        )

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """The base's product and the adapter's."""
        t = terms(eqn, 0, self.n_in)
        if self.base.ndim != len(t.inputs + t.outputs) or not t.forward:
            raise UserError(f"an adapter stands on a layer's product, inputs to outputs; {eqn!r} is none")
        r = next(letter for letter in "rzyxwvutsq" if letter not in eqn)
        h = einsum(eqn, x, self.base)
        letters, read, contracted = (t.x, x, t.inputs) if self.parallel else (t.result, h, t.outputs)
        narrow = "".join(letter for letter in letters if letter not in contracted) + r
        inner = einsum(f"{letters},{contracted}{r}->{narrow}", read, self.down)
        inner = ACTIVATIONS[self.activation](inner.astype(jnp.float32)).astype(h.dtype)
        return h + einsum(f"{narrow},{r}{t.outputs}->{t.result}", inner, self.up) * jnp.asarray(self.scale, h.dtype)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A bottleneck beside the weights that `rules` match, regexes on their paths, or (regex, width); bottlenecks alone train.

    width: of rules without one. The rules that are there by default are Houlsby's. activation: a key of `mixers.mlp.ACTIVATIONS`.
    scale: of what is added.

    `plan` raises UserError for a rule that matches nothing or what is no matrix, and for a weight that has an adapter already;
    `merge` raises it in any case, as an adapter is no matrix.
    """

    rules: Rules = ("blocks/.*/mixer/o", "blocks/.*/mlp/down")
    width: int = 16
    activation: str = "gelu"
    form: Literal["sequential", "parallel"] = "sequential"
    scale: float = 1.0

    def __post_init__(self):
        lookup(ACTIVATIONS, self.activation, "activation")
        if self.form not in ("sequential", "parallel"):
            raise ValueError(f"Adapter.form must be 'sequential' or 'parallel', found {self.form!r}")
        check_rules(self.rules, self.width, "Adapter", "width")

    def plan(self, specs) -> Plan:
        """See `transforms.plan.Plan`."""
        known, found = weights(specs), targets(specs, self.rules, "Adapter", "adapter", not_a_matrix, self.width)
        parallel = self.form == "parallel"

        def declared(path: str, width: int) -> AdapterWeight:
            spec = spec_of(known[path])
            axes, first = spec.axes[spec.n_stacked :], spec.n_in
            read, axes_read = (spec.inputs, axes[:first]) if parallel else (spec.outputs, axes[first:])
            down = Spec((*read, width), (*axes_read, "rank"), n_in=len(read))
            up = Spec((width, *spec.outputs), ("rank", *axes[first:]), zeros)
            for size, axis in zip(reversed(spec.stacked), reversed(spec.axes[: spec.n_stacked])):
                down, up = stack((down, up), size, axis=axis)
            return AdapterWeight(known[path], down, up, self.activation, parallel, self.scale, spec.n_in)

        nodes = {path: declared(path, width) for path, width in found.items()}

        def fill(path: str, weight, key) -> AdapterWeight:
            return drawn(nodes[path], ("down", "up"), path, weight, key)

        return rewriting(specs, nodes, fill, ("down", "up"))
