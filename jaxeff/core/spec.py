"""A parameter is declared once, as a `Spec`; values, shapes, shardings and counts all follow from the tree of Specs.

Weights are stored input dimensions first, and `n_in` says how many of them are inputs: a fan-in, the halves of a low-rank
pair and the axis of a quantization scale need no table of names.

Initial values are a function of (key, path) alone: the key of a parameter folds in a hash of its path, so that adding one
parameter, or changing the mesh, leaves every other initial value as it was.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp

from jaxeff.core.tree import map_with_path


@dataclasses.dataclass(frozen=True)
class Site:
    """Where an initial value goes: its number of input dimensions, its layer of how many (outside a stack, 0 of 1), and whether one
    device holds all of it."""

    n_in: int
    layer: Any = 0
    n_layers: int = 1
    whole: bool = False


LAYER = "layer"

Initializer = Callable[[jax.Array, tuple[int, ...], Any, Site], jax.Array]


def zeros(key, shape, dtype, site: Site):
    """All zero."""
    return jnp.zeros(shape, dtype)


def ones(key, shape, dtype, site: Site):
    """All one."""
    return jnp.ones(shape, dtype)


def drawn(draw: Callable[[tuple[int, ...]], jax.Array], shape: tuple[int, ...], site: Site) -> jax.Array:
    """`draw(shape)`, as one row where a device holds all of it: the same numbers, and XLA compiles them in a third of the time.
    A row could not be laid out over several devices as the array is."""
    return draw((math.prod(shape),)).reshape(shape) if site.whole else draw(shape)


def fan_in(key, shape, dtype, site: Site):
    """Truncated normal with variance 1 / (product of the input dimensions)."""
    std = math.prod(shape[: site.n_in]) ** -0.5
    values = drawn(lambda shape: jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype), shape, site)
    # A standard normal cut at two standard deviations has standard deviation 0.8796.
    return values * jnp.asarray(std / 0.87962566, dtype)


def residual(key, shape, dtype, site: Site):
    """`fan_in` divided by sqrt(2 L): keeps the residual stream's variance at init independent of depth (GPT-2, section 2.3)."""
    return fan_in(key, shape, dtype, site) * jnp.asarray((2 * site.n_layers) ** -0.5, dtype)


@dataclasses.dataclass(frozen=True)
class Normal:
    """Normal with the given standard deviation."""

    std: float

    def __call__(self, key, shape, dtype, site: Site):
        return drawn(lambda shape: jax.random.normal(key, shape, dtype), shape, site) * jnp.asarray(self.std, dtype)


@dataclasses.dataclass(frozen=True)
class Constant:
    """One value everywhere."""

    value: float

    def __call__(self, key, shape, dtype, site: Site):
        return jnp.full(shape, self.value, dtype)


@dataclasses.dataclass(frozen=True)
class Stacked:
    """One initial value per entry of a stack, `inner` called with the entry's own key and, where entries are layers, depth."""

    inner: Initializer
    axis: str
    start: int
    step: int
    total: int

    def __call__(self, key, shape, dtype, site: Site):
        def one(entry):
            inner = dataclasses.replace(site, layer=entry, n_layers=self.total) if self.axis == LAYER else site
            return self.inner(jax.random.fold_in(key, entry), shape[1:], dtype, inner)

        return jax.vmap(one)(self.start + self.step * jnp.arange(shape[0]))


@dataclasses.dataclass(frozen=True)
class AtDepth:
    """`inner` as layer `layer` of `total`: for a weight that stands at a depth without being stacked."""

    inner: Initializer
    layer: int
    total: int

    def __call__(self, key, shape, dtype, site: Site):
        return self.inner(key, shape, dtype, dataclasses.replace(site, layer=self.layer, n_layers=self.total))


@dataclasses.dataclass(frozen=True)
class Spec:
    """Declaration of one parameter.

    shape: dimensions, inputs first. axes: a logical name (see `core.sharding.RULES`) or None for each dimension.
    init: a module-level function or frozen dataclass called as `(key, shape, dtype, site)`. dtype: None follows the
    caller's choice. n_stacked: how many leading dimensions number equal weights (layers, experts). n_in: how many of the
    dimensions after these are inputs.

    Raises ValueError when shape and axes disagree, or n_in and n_stacked are out of range.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer = fan_in
    dtype: Any = None
    n_in: int = 1
    n_stacked: int = 0

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "axes", tuple(self.axes))
        if len(self.shape) != len(self.axes):
            raise ValueError(
                f"Spec has {len(self.shape)} dimensions {self.shape} but {len(self.axes)} axes {self.axes}"
            )
        if any(not isinstance(n, int) or n < 1 for n in self.shape):
            raise ValueError(f"Spec dimensions must be positive integers, found {self.shape}")
        if not 0 <= self.n_stacked <= self.n_stacked + self.n_in <= len(self.shape):
            raise ValueError(f"Spec of shape {self.shape} cannot have n_in={self.n_in} and n_stacked={self.n_stacked}")

    @property
    def stacked(self) -> tuple[int, ...]:
        """The dimensions that number equal weights."""
        return self.shape[: self.n_stacked]

    @property
    def inputs(self) -> tuple[int, ...]:
        """The input dimensions of one weight."""
        return self.shape[self.n_stacked : self.n_stacked + self.n_in]

    @property
    def outputs(self) -> tuple[int, ...]:
        """The output dimensions of one weight."""
        return self.shape[self.n_stacked + self.n_in :]

    @property
    def is_matrix(self) -> bool:
        """Whether it takes inputs to outputs: a norm's scale and a bias over heads do not."""
        return self.n_in > 0 and len(self.outputs) > 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def init(specs, key: jax.Array, dtype=jnp.float32, shardings=None):
    """Initial values for a tree of Specs; each depends on `key` and its own path only.

    shardings: a matching tree of shardings, or None; the values are the same on any mesh but for the last bit, which the
    compiler's loops for other shard shapes may round otherwise, and no device ever holds more than its shards. Each distinct
    declaration is compiled once, however many paths, models or calls share it.
    """

    def one(path: str, spec: Spec, sharding=None):
        path_key = jax.random.fold_in(key, crc32(path.encode()))
        return _compiled(sharding)(spec.init, spec.shape, jnp.dtype(spec.dtype or dtype), spec.n_in, path_key)

    return map_with_path(one, specs) if shardings is None else map_with_path(one, specs, shardings)


@functools.cache
def _compiled(sharding):
    whole = sharding is None or len(sharding.device_set) == 1

    def value(initializer, shape, dtype, n_in, key):
        return initializer(key, shape, dtype, Site(n_in, whole=whole))

    return jax.jit(value, static_argnums=(0, 1, 2, 3), out_shardings=sharding)


def abstract(specs, dtype=jnp.float32):
    """`jax.ShapeDtypeStruct` for each Spec: a checkpoint target, or the input of ahead-of-time compilation."""
    return jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype or dtype), specs)


def stack(specs, n: int, start: int = 0, step: int = 1, total: int | None = None, axis: str = LAYER):
    """Specs of `n` equal parts along a new leading axis.

    axis "layer": entry i is layer `start + step * i` of `total` in the whole model, which initial values may depend on.
    Stacks nest: experts stacked along "expert" inside a layer keep the layer's depth.
    """

    def one(spec: Spec) -> Spec:
        return dataclasses.replace(
            spec,
            shape=(n, *spec.shape),
            axes=(axis, *spec.axes),
            init=Stacked(spec.init, axis, start, step, total or n),
            n_stacked=spec.n_stacked + 1,
        )

    return jax.tree.map(one, specs)


def at_depth(specs, layer: int, total: int):
    """Specs of one layer that stands outside a stack, as layer `layer` of `total`."""
    return jax.tree.map(lambda spec: dataclasses.replace(spec, init=AtDepth(spec.init, layer, total)), specs)


def count(specs) -> int:
    """Number of scalar parameters in a tree of Specs or arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(specs))
