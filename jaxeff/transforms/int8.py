"""Eight bits a weight, one scale an output channel. I inputs, O outputs of a weight.

    scale_o = max_i |W_io| / 127        codes = round(W / scale)        y = (x codes) * scale

Symmetric, round half to even; a channel of zeros has scale 1. The product is taken with the codes and scaled after, so that the
dense weight exists nowhere.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Spec, ones, zeros
from jaxeff.core.weight import einsum, take, terms
from jaxeff.transforms.few_bits import quantizing
from jaxeff.transforms.node import Node
from jaxeff.transforms.plan import Plan


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Weight(Node):
    """codes int8 [*L, *I, *O] times scale float [*L, 1, ..., *O], of the same rank."""

    codes: jax.Array
    scale: jax.Array
    n_in: int = dataclasses.field(default=1, metadata={"static": True})
    n_out: int = dataclasses.field(default=1, metadata={"static": True})

    stage, parts = "few bits", ()

    @property
    def ndim(self) -> int:
        """That of the codes."""
        return self.codes.ndim

    def spec(self) -> Spec:
        """That of the codes, a float."""
        return dataclasses.replace(self.codes, dtype=None)

    @property
    def n_stacked(self) -> int:
        """How many leading dimensions number equal weights."""
        return self.codes.ndim - self.n_in - self.n_out

    def dense(self, dtype) -> jax.Array:
        """codes * scale, the product in float32."""
        return (self.codes.astype(jnp.float32) * self.scale.astype(jnp.float32)).astype(dtype)

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """The product with the codes, scaled by output channel; the dense one where outputs are contracted."""
        t = terms(eqn, self.n_stacked, self.n_in)
        if self.n_stacked or not t.forward:
            return super().einsum(eqn, x)
        y = einsum(eqn, x, self.codes.astype(x.dtype))
        outputs = self.scale.shape[self.n_in :]
        scale = self.scale.astype(jnp.float32).reshape((1,) * (y.ndim - len(outputs)) + outputs)
        return (y.astype(jnp.float32) * scale).astype(x.dtype)

    def take(self, ids: jax.Array, dtype) -> jax.Array:
        """Rows of the codes, scaled."""
        rows, scale = take(self.codes, ids, jnp.float32), self.scale[0].astype(jnp.float32)
        return (rows * scale.reshape((1,) * (rows.ndim - scale.ndim) + scale.shape)).astype(dtype)


def quantize(w: jax.Array, n_stacked: int, n_in: int) -> tuple[jax.Array, jax.Array]:
    """(codes, scale) of a plain weight."""
    inputs = tuple(range(n_stacked, n_stacked + n_in))
    largest = jnp.max(jnp.abs(w.astype(jnp.float32)), axis=inputs, keepdims=True)
    scale = jnp.where(largest > 0, largest / 127, 1.0)
    codes = jnp.clip(jnp.round(w.astype(jnp.float32) / scale), -127, 127).astype(jnp.int8)
    return codes, scale.astype(w.dtype)


@dataclasses.dataclass(frozen=True)
class Int8:
    """The weights that `rules` (regular expressions on their paths) match in eight bits; they train no more, others do.

    `plan` raises UserError for a rule that matches nothing or what is no matrix, and for a weight that has an adapter or is in few
    bits already.
    """

    rules: tuple[str, ...] = ("blocks/.*/mixer/(q|k|v|o)",)

    def plan(self, specs) -> Plan:
        """See `transforms.plan.Plan`."""
        return quantizing(specs, self.rules, "Int8", _declared, _filled)


def _declared(spec: Spec) -> Int8Weight:
    narrow = (*spec.stacked, *(1 for _ in spec.inputs), *spec.outputs)
    axes = tuple(None if n != m else axis for n, m, axis in zip(narrow, spec.shape, spec.axes))
    codes = dataclasses.replace(spec, init=zeros, dtype=jnp.int8)
    return Int8Weight(codes, Spec(narrow, axes, ones, n_in=0, n_stacked=spec.n_stacked), spec.n_in, len(spec.outputs))


def _filled(path: str, spec: Spec, w: jax.Array) -> Int8Weight:
    return Int8Weight(*quantize(w, spec.n_stacked, spec.n_in), spec.n_in, len(spec.outputs))
