"""A kernel by each device of a mesh, for its part of the arrays."""

from collections.abc import Callable

import jax
from jax.sharding import NamedSharding

from jaxeff.core.sharding import Rules, pspec


def on_each_device(run: Callable, arrays: tuple, mesh, specs: Callable[[], tuple]):
    """`run(*arrays)` by each device of the mesh. specs: gives (PartitionSpecs of the arrays, of what `run` gives), where there is a
    mesh. Mosaic demands that all axes of the mesh are manual: inside `jax.shard_map` over some, these are the others."""
    manual = set(jax.sharding.get_abstract_mesh().manual_axes)
    others = set(() if mesh is None or mesh.size == 1 else mesh.axis_names) - manual
    if not others:
        return run(*arrays)
    given, found = specs()
    mesh = None if manual else mesh
    spread = jax.shard_map(run, mesh=mesh, in_specs=given, out_specs=found, axis_names=others, check_vma=False)
    return spread(*arrays)


def part(shape: tuple[int, ...], axes: tuple[str | None, ...], mesh, rules: Rules) -> tuple[int, ...]:
    """What one device has of an array with these logical axes; all of it where there is no mesh."""
    return shape if mesh is None else NamedSharding(mesh, pspec(axes, shape, mesh, rules)).shard_shape(shape)
