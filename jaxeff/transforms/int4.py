"""Four bits a weight, evenly spaced between the least and the largest of a group of inputs.

    W = low_group + step_group * code        code in 0..15        step = (max - min) / 15, low = min    ("awq": all by scale_i)

The steps are in bfloat16, the lows in the weight's own dtype: in a bfloat16 model with groups of 64, 4 + 32/64 bits a weight.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from jaxeff.core.errors import lookup
from jaxeff.core.spec import Spec, ones, zeros
from jaxeff.transforms.calibrate import Evidence, needed
from jaxeff.transforms.few_bits import PackedWeight, block_spec, blocks, joined, pack, quantizing
from jaxeff.transforms.gptq import feed_errors, sparing
from jaxeff.transforms.node import matrix
from jaxeff.transforms.plan import Plan

LARGEST = 15


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int4Weight(PackedWeight):
    """codes uint8 [*L, N, S / 2, *O], two a byte; low [*L, N, 1, *O]; step bfloat16 of the same shape; scale of the inputs
    [*L, *I], or None; plain: the Spec of what it stands for."""

    codes: jax.Array
    low: jax.Array
    step: jax.Array
    scale: jax.Array | None
    plain: Spec = dataclasses.field(metadata={"static": True})

    def dense(self, dtype) -> jax.Array:
        """(low + step * code) / scale, in float32."""
        codes = self.unpacked
        w = joined(value(codes, self.low, self.step), self.plain)
        if self.scale is not None:
            w = w / self.scale.astype(jnp.float32).reshape(*self.scale.shape, *(1,) * len(self.plain.outputs))
        return w.astype(dtype)


@dataclasses.dataclass(frozen=True)
class Int4:
    """The weights that `rules` (regular expressions on their paths) match in four bits; they train no more, others do.

    group: inputs that share step and low. method: "nearest"; "gptq", each rounding error made up for by the inputs after it; "awq",
    inputs scaled up before rounding by how large they come (see `transforms.gptq`). The last two need evidence to lift, of the kind
    that `evidence` names.

    `plan` raises UserError for a rule that matches nothing or what is no matrix, and for a weight that has an adapter or is in few
    bits already; with evidence needed, also for one of low rank or with a mask, whose inputs are not the weight's.
    """

    rules: tuple[str, ...] = ("blocks/.*/mixer/(q|k|v|o)", "blocks/.*/mlp/(up|gate|down)")
    group: int = 64
    method: Literal["nearest", "gptq", "awq"] = "nearest"

    def __post_init__(self):
        if self.group < 2 or self.group % 2:
            raise ValueError(f"Int4.group must be even and at least 2, found {self.group}")
        lookup(NEEDS, self.method, "Int4.method")

    @property
    def evidence(self) -> tuple[str, ...]:
        """The statistics that lifting needs."""
        return NEEDS[self.method]

    def plan(self, specs, evidence: Mapping[str, Evidence] | None = None) -> Plan:
        """See `transforms.plan.Plan`."""
        filled = functools.partial(self._filled, evidence=evidence)
        return quantizing(specs, self.rules, "Int4", self._declared, filled, plain=bool(self.evidence))

    def _declared(self, spec: Spec) -> Int4Weight:
        n, size = blocks(spec, self.group)
        codes = block_spec(spec, n, size // 2, init=zeros, dtype=jnp.uint8)
        low, step = block_spec(spec, n, 1, init=zeros), block_spec(spec, n, 1, init=ones, dtype=jnp.bfloat16)
        inputs = spec.n_stacked + spec.n_in
        scale = Spec(spec.shape[:inputs], spec.axes[:inputs], ones, n_in=0, n_stacked=spec.n_stacked)
        return Int4Weight(codes, low, step, scale if self.method == "awq" else None, spec)

    def _filled(self, path: str, spec: Spec, w: jax.Array, evidence) -> Int4Weight:
        found = needed(f"Int4(method={self.method!r})", self.evidence, path, evidence) if self.evidence else None
        f = functools.partial(METHODS[self.method], size=blocks(spec, self.group)[1], dtype=w.dtype)
        for _ in spec.stacked:
            f = jax.vmap(f)
        w_IO = matrix(w.astype(jnp.float32), spec.n_stacked, spec.n_in)
        codes, low, step, scale = f(w_IO, *(getattr(found, name) for name in self.evidence))
        codes, low, step = (x.reshape(*x.shape[:-1], *spec.outputs) for x in (codes, low, step))
        scale = None if scale is None else scale.reshape(*spec.stacked, *spec.inputs)
        return Int4Weight(pack(codes, spec.n_stacked + 1), low, step, scale, spec)


# Each: (codes [N, S, O], low and step [N, 1, O], scale [I] or None) of one matrix [I, O] in float32.


def _to_nearest(w_IO, size: int, dtype):
    groups = _groups(w_IO, size)
    low, step = fit(groups, 1, dtype)
    return nearest(groups, low, step), low, step, None


def _by_errors(w_IO, h_II, size: int, dtype):
    more = -len(w_IO) % size
    w_IO, h_II = jnp.pad(w_IO, ((0, more), (0, 0))), jnp.pad(h_II, ((0, more), (0, more)))
    round_row = lambda row, numbers: value(nearest(row[None], *numbers), *numbers)[0]
    w_IO, (low, step) = feed_errors(w_IO, h_II, size, lambda group: fit(group, 0, dtype), round_row)
    return nearest(_groups(w_IO, size), low, step), low, step, None


def _by_scales(w_IO, h_II, size_I, size: int, dtype):
    def rounded(w_IO):
        codes, low, step, _ = _to_nearest(w_IO, size, dtype)
        return value(codes, low, step).reshape(-1, w_IO.shape[-1])[: len(w_IO)]

    scale_I = sparing(w_IO, h_II, size_I, rounded).astype(dtype)
    codes, low, step, _ = _to_nearest(w_IO * scale_I.astype(jnp.float32)[:, None], size, dtype)
    return codes, low, step, scale_I


METHODS = {"nearest": _to_nearest, "gptq": _by_errors, "awq": _by_scales}
NEEDS = {"nearest": (), "gptq": ("covariance",), "awq": ("covariance", "absolute")}


def fit(groups: jax.Array, axis: int, dtype) -> tuple[jax.Array, jax.Array]:
    """(low in `dtype`, step in bfloat16) of groups along an axis, which becomes 1."""
    least, largest = (f(groups, axis=axis, keepdims=True) for f in (jnp.min, jnp.max))
    low = least.astype(dtype)
    # From the rounded low, so that the largest is reached; a group of equal numbers has step 0.
    return low, ((largest - low.astype(jnp.float32)) / LARGEST).astype(jnp.bfloat16)


def nearest(x: jax.Array, low: jax.Array, step: jax.Array) -> jax.Array:
    """The codes whose values are nearest to x, uint8."""
    step = jnp.where(step > 0, step.astype(jnp.float32), 1.0)
    return jnp.clip(jnp.round((x - low.astype(jnp.float32)) / step), 0, LARGEST).astype(jnp.uint8)


def value(codes: jax.Array, low: jax.Array, step: jax.Array) -> jax.Array:
    """low + step * code, in float32."""
    return low.astype(jnp.float32) + step.astype(jnp.float32) * codes.astype(jnp.float32)


def _groups(w_IO: jax.Array, size: int) -> jax.Array:
    """[N, S, O], zeros after the last input."""
    return jnp.pad(w_IO, ((0, -len(w_IO) % size), (0, 0))).reshape(-1, size, w_IO.shape[-1])
