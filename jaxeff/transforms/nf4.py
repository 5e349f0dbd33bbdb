"""Four bits a weight, at the quantiles of a normal distribution (Dettmers et al. 2023, "QLoRA", section 3).

    W = absmax_block * level[code]        absmax = offset + unit * code'        level: 16 numbers in [-1, 1], 0 among them

The scales of the blocks are in eight bits themselves (double quantization), evenly spaced between the least and the largest of
one row of blocks. With blocks of 64 that takes 4 + 8/64 bits a weight and a little for unit and offset.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Spec, ones, zeros
from jaxeff.core.target import platform
from jaxeff.transforms.few_bits import PackedWeight, block_spec, blocks, cut, joined, pack, quantizing
from jaxeff.transforms.plan import Plan

LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
BYTE = 255


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NF4Weight(PackedWeight):
    """codes uint8 [*L, N, S / 2, *O], two a byte; the blocks' absmax [*L, N, 1, *O], float, or uint8 with `unit` and `offset`
    [*L, N, 1, ..., 1]; plain: the Spec of what it stands for."""

    codes: jax.Array
    absmax: jax.Array
    unit: jax.Array | None
    offset: jax.Array | None
    plain: Spec = dataclasses.field(metadata={"static": True})

    @property
    def scale(self) -> jax.Array:
        """The blocks' absmax as float32 [*L, N, 1, *O]."""
        absmax = self.absmax.astype(jnp.float32)
        if self.unit is None:
            return absmax
        return self.offset.astype(jnp.float32) + self.unit.astype(jnp.float32) * absmax

    def dense(self, dtype) -> jax.Array:
        """absmax * level, the product in float32."""
        return joined((self.scale * level(self.unpacked)).astype(dtype), self.plain)


@dataclasses.dataclass(frozen=True)
class NF4:
    """The weights that `rules` (regular expressions on their paths) match in four bits; they train no more, others do.

    block: inputs that share a scale. double: whether the scales are in eight bits.

    `plan` raises UserError for a rule that matches nothing or what is no matrix, and for a weight that has an adapter or is in few
    bits already.
    """

    rules: tuple[str, ...] = ("blocks/.*/mixer/(q|k|v|o)", "blocks/.*/mlp/(up|gate|down)")
    block: int = 64
    double: bool = True

    def __post_init__(self):
        if self.block < 2 or self.block % 2:
            raise ValueError(f"NF4.block must be even and at least 2, found {self.block}")

    def plan(self, specs) -> Plan:
        """See `transforms.plan.Plan`."""
        return quantizing(specs, self.rules, "NF4", self._declared, self._filled)

    def _declared(self, spec: Spec) -> NF4Weight:
        n, size = blocks(spec, self.block)
        codes = block_spec(spec, n, size // 2, init=zeros, dtype=jnp.uint8)
        if not self.double:
            return NF4Weight(codes, block_spec(spec, n, 1, init=ones), None, None, spec)
        absmax = block_spec(spec, n, 1, init=zeros, dtype=jnp.uint8)
        unit, offset = (block_spec(spec, n, 1, wide=False, init=init) for init in (ones, zeros))
        return NF4Weight(codes, absmax, unit, offset, spec)

    def _filled(self, path: str, spec: Spec, w: jax.Array) -> NF4Weight:
        blocks_w = cut(w.astype(jnp.float32), spec, self.block)
        inputs = spec.n_stacked + 1
        absmax, unit, offset = jnp.max(jnp.abs(blocks_w), axis=inputs, keepdims=True), None, None
        if self.double:
            outputs = tuple(range(inputs + 1, blocks_w.ndim))
            least, largest = (f(absmax, axis=outputs, keepdims=True) for f in (jnp.min, jnp.max))
            unit, offset = ((largest - least) / BYTE).astype(w.dtype), least.astype(w.dtype)
            absmax = (absmax - offset.astype(jnp.float32)) / jnp.where(unit > 0, unit.astype(jnp.float32), 1.0)
            absmax = jnp.clip(jnp.round(absmax), 0, BYTE).astype(jnp.uint8)
        else:
            absmax = absmax.astype(w.dtype)
        node = NF4Weight(absmax, absmax, unit, offset, spec)
        codes = nearest_level(blocks_w / jnp.where(node.scale > 0, node.scale, 1.0))
        return dataclasses.replace(node, codes=pack(codes, inputs))


def level(codes: jax.Array) -> jax.Array:
    """LEVELS[codes], float32: looked up on a CPU, else chosen bit by bit, which fuses with what follows and holds no indices."""
    if platform() == "cpu":
        return jnp.asarray(LEVELS, jnp.float32)[codes]
    values = [jnp.float32(value) for value in LEVELS]
    for i in range(4):
        bit = (codes >> i) & 1 != 0
        values = [jnp.where(bit, high, low) for low, high in zip(values[::2], values[1::2])]
    return values[0]


def nearest_level(x: jax.Array) -> jax.Array:
    """The code of the nearest of LEVELS, uint8."""
    levels = jnp.asarray(LEVELS, jnp.float32)
    middles = (levels[1:] + levels[:-1]) / 2
    return jnp.searchsorted(middles, x, method="compare_all").astype(jnp.uint8)
