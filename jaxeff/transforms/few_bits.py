"""What all weights in few bits have in common: they are planned alike, and are frozen. Four bits, two to a byte.

A packed weight has its input dimensions in one, cut into blocks that share a scale: [*L, *I, *O] becomes codes [*L, N, S / 2, *O],
N blocks of S inputs, L stacked, O outputs. Blocks lie along the inputs, so that shards cut at their edges.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.core import matmul
from jaxeff.core.errors import UserError
from jaxeff.core.spec import Spec
from jaxeff.transforms.node import STAGES, Node, innermost, nodes_of
from jaxeff.transforms.plan import Plan, not_a_matrix, rewriting, targets, weights, within


def quantizing(
    specs,
    rules: Sequence[str],
    method: str,
    declared: Callable[[Spec], Any],
    filled: Callable[[str, Spec, jax.Array], Any],
    plain: bool = False,
) -> Plan:
    """The plan of a method that rounds the matched weights, those inside of a low-rank pair or under a mask too.

    declared(spec): the node of Specs for a plain weight's Spec; filled(path, spec, w): that of values. plain: whether only plain
    weights can be, for methods that round by what goes into the whole weight.
    """
    known = weights(specs)
    found = {path: known[path] for path in targets(specs, rules, method, "few bits", not_a_matrix)}
    for path, weight in found.items():
        inner = next(nodes_of(weight), None)
        if plain and inner is not None:
            raise UserError(
                f"{method} rounds {path!r} by what goes into it, which needs the weight as it is; it {STAGES[inner.stage]}"
            )
    nodes = {path: innermost(declared, weight) for path, weight in found.items()}
    return rewriting(
        specs,
        nodes,
        lambda path, w, key: innermost(lambda x, spec: filled(path, spec, x), w, found[path]),
        frozen=within(nodes),
    )


def blocks(spec: Spec, size: int) -> tuple[int, int]:
    """(N, S) for blocks of `size` inputs, which a smaller weight has not; S even."""
    inputs = math.prod(spec.inputs)
    size = min(size, inputs + inputs % 2)
    return -(-inputs // size), size


def block_spec(spec: Spec, *shape: int, wide: bool = True, **fields) -> Spec:
    """The Spec of an array [*L, *shape, *O] that goes with a weight, [*L, *shape, 1, ...] if not `wide`.

    The first dimension of `shape` is laid out as the weight's first input.
    """
    stacked, outer = spec.axes[: spec.n_stacked], spec.axes[spec.n_stacked + spec.n_in :]
    outputs = spec.outputs if wide else (1,) * len(outer)
    axes = (*stacked, spec.axes[spec.n_stacked], *shape_axes(shape[1:]), *(outer if wide else shape_axes(outer)))
    return Spec((*spec.stacked, *shape, *outputs), axes, n_in=0, n_stacked=spec.n_stacked, **fields)


def shape_axes(shape: Sequence) -> tuple[None, ...]:
    """No logical axis for each."""
    return (None,) * len(shape)


def cut(w: jax.Array, spec: Spec, size: int) -> jax.Array:
    """[*L, *I, *O] -> [*L, N, S, *O], zeros after the last input."""
    n, size = blocks(spec, size)
    w = w.reshape(*spec.stacked, -1, *spec.outputs)
    missing = [(0, 0)] * w.ndim
    missing[spec.n_stacked] = (0, n * size - math.prod(spec.inputs))
    return jnp.pad(w, missing).reshape(*spec.stacked, n, size, *spec.outputs)


def joined(x: jax.Array, spec: Spec) -> jax.Array:
    """The inverse of `cut`, for a weight or one of a stack of them."""
    first = x.ndim - len(spec.outputs) - 2
    x = x.reshape(*x.shape[:first], -1, *spec.outputs)
    x = jax.lax.slice_in_dim(x, 0, math.prod(spec.inputs), axis=first)
    return x.reshape(*x.shape[:first], *spec.inputs, *spec.outputs)


def pack(codes: jax.Array, axis: int) -> jax.Array:
    """Numbers below 16 as uint8, two to a byte along `axis`: the first one in the high half."""
    codes = jnp.moveaxis(codes.astype(jnp.uint8), axis, -1)
    return jnp.moveaxis(codes[..., ::2] << 4 | codes[..., 1::2], -1, axis)


def unpack(packed: jax.Array, axis: int) -> jax.Array:
    """The inverse of `pack`, uint8."""
    both = jnp.stack([packed >> 4, packed & 15], axis=axis + 1)
    return both.reshape(*packed.shape[:axis], 2 * packed.shape[axis], *packed.shape[axis + 1 :])


class PackedWeight(Node):
    """A weight in packed codes; fields `codes` [*L, N, S / 2, *O] and, static, `plain`, the Spec of what it stands for."""

    stage, parts = "few bits", ()

    @property
    def ndim(self) -> int:
        """That of the plain weight."""
        return self.codes.ndim - 2 + self.plain.n_in

    def spec(self) -> Spec:
        """That of the plain weight."""
        return self.plain

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """The product with the dense weight, which is held in x's dtype: without the barrier a TPU's compiler casts at each product
        and holds the float32 numbers before the cast, twice the memory."""
        return matmul.einsum(eqn, x, jax.lax.optimization_barrier(self.dense(x.dtype)))

    @property
    def unpacked(self) -> jax.Array:
        """The codes [*L, N, S, *O], uint8."""
        return unpack(self.codes, self.codes.ndim - len(self.plain.outputs) - 1)
