"""Four bits a weight, evenly spaced between the least and the largest of a group of inputs.

    W = low_group + step_group * code        code in 0..15        step = (max - min) / 15, low = min

The steps are in bfloat16, the lows in the weight's own dtype: in a bfloat16 model with groups of 64, 4 + 32/64 bits a weight.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Spec, ones, zeros
from jaxeff.transforms.few_bits import block_spec, blocks, cut, joined, pack, quantizing, unpack
from jaxeff.transforms.node import Node
from jaxeff.transforms.plan import Plan

LARGEST = 15


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int4Weight(Node):
    """codes uint8 [*L, N, S / 2, *O], two a byte; low [*L, N, 1, *O]; step bfloat16 of the same shape; plain: the Spec of what it
    stands for."""

    codes: jax.Array
    low: jax.Array
    step: jax.Array
    plain: Spec = dataclasses.field(metadata={"static": True})

    stage, parts = "few bits", ()

    @property
    def ndim(self) -> int:
        """That of the plain weight."""
        return self.codes.ndim - 2 + self.plain.n_in

    def spec(self) -> Spec:
        """That of the plain weight."""
        return self.plain

    def dense(self, dtype) -> jax.Array:
        """low + step * code, in float32."""
        codes = unpack(self.codes, self.codes.ndim - len(self.plain.outputs) - 1).astype(jnp.float32)
        w = self.low.astype(jnp.float32) + self.step.astype(jnp.float32) * codes
        return joined(w.astype(dtype), self.plain)


@dataclasses.dataclass(frozen=True)
class Int4:
    """The weights that `rules` (regular expressions on their paths) match in four bits; they train no more, others do.

    group: inputs that share step and low.

    `plan` raises UserError for a rule that matches nothing or what is no matrix, and for a weight that has an adapter or is in few
    bits already.
    """

    rules: tuple[str, ...] = ("blocks/.*/mixer/(q|k|v|o)", "blocks/.*/mlp/(up|gate|down)")
    group: int = 64

    def __post_init__(self):
        if self.group < 2 or self.group % 2:
            raise ValueError(f"Int4.group must be even and at least 2, found {self.group}")

    def plan(self, specs) -> Plan:
        """See `transforms.plan.Plan`."""
        return quantizing(specs, self.rules, "Int4", self._declared, self._filled)

    def _declared(self, spec: Spec) -> Int4Weight:
        n, size = blocks(spec, self.group)
        codes = block_spec(spec, n, size // 2, init=zeros, dtype=jnp.uint8)
        low, step = block_spec(spec, n, 1, init=zeros), block_spec(spec, n, 1, init=ones, dtype=jnp.bfloat16)
        return Int4Weight(codes, low, step, spec)

    def _filled(self, spec: Spec, w: jax.Array) -> Int4Weight:
        groups = cut(w.astype(jnp.float32), spec, self.group)
        inputs = spec.n_stacked + 1
        least, largest = (f(groups, axis=inputs, keepdims=True) for f in (jnp.min, jnp.max))
        low = least.astype(w.dtype)
        # From the rounded low, so that the largest is reached; a group of equal numbers has step 0.
        step = ((largest - low.astype(jnp.float32)) / LARGEST).astype(jnp.bfloat16)
        codes = (groups - low.astype(jnp.float32)) / jnp.where(step > 0, step.astype(jnp.float32), 1.0)
        return Int4Weight(pack(jnp.clip(jnp.round(codes), 0, LARGEST), inputs), low, step, spec)
