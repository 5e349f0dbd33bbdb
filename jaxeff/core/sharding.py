"""Logical axis names and where they live on a device mesh.

Every dimension of a parameter has a logical name; one table maps names to mesh axes. A dimension that its mesh axes do not
divide is replicated, which is logged once.
"""

import functools
import logging
import math

import jax
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxeff.core.errors import UserError, lookup

MESH_AXES = ("data", "fsdp", "tensor", "sequence")


class Rules(tuple):
    """The mesh axes of each logical axis, as (name, mesh axes) pairs: a value that can be hashed. Another table is
    `RULES.replace(mlp=())`."""

    __slots__ = ()

    @classmethod
    def of(cls, **table: tuple[str, ...]) -> "Rules":
        """Rules from keyword arguments."""
        return cls(table.items())

    def replace(self, **table: tuple[str, ...]) -> "Rules":
        """These rules with some names changed. Raises UserError for a name that is none."""
        for name in table:
            self.of_axis(name)
        return Rules((dict(self) | table).items())

    def of_axis(self, name: str | None) -> tuple[str, ...]:
        """The mesh axes of a logical axis; none for None. Raises UserError for an unknown name."""
        return () if name is None else lookup(dict(self), name, "logical axis")


RULES = Rules.of(
    batch=("data", "fsdp"),
    time=("sequence",),
    embed=("fsdp",),
    heads=("tensor",),
    kv_heads=("tensor",),
    head_dim=(),
    mlp=("tensor",),
    state=(),
    vocab=("tensor",),
    layer=(),
    rank=(),
    conv=(),
    expert=("tensor",),
)


def make_mesh(
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    sequence: int = 1,
    devices=None,
    *,
    dcn_data: int = 1,
    dcn_fsdp: int = 1,
) -> Mesh:
    """A mesh of the first `data * fsdp * tensor * sequence` devices.

    dcn_data, dcn_fsdp: in how many parts an axis is cut that lie in different slices, islands of devices with links of their own,
    between which there is only the data centre's network; they divide the axis. An island is a slice of TPUs, or where devices know
    of none the devices of a process.
    Axis types are Auto: shardings propagate through a layer that knows nothing of the mesh.
    Raises UserError when a size is below 1, there are too few devices, or slices and their parts disagree.
    """
    sizes, parts = (data, fsdp, tensor, sequence), (dcn_data, dcn_fsdp, 1, 1)
    if min(sizes) < 1:
        raise UserError(f"mesh axes must be at least 1, found {dict(zip(MESH_AXES, sizes, strict=True))}")
    for name, size, n in zip(MESH_AXES, sizes, parts, strict=True):
        if n < 1 or size % n:
            raise UserError(f"mesh.dcn_{name}={n} must be at least 1 and divide mesh.{name}={size}")
    needed = math.prod(sizes)
    if devices is None:
        # A single one is a device of this process: several may each read a run for themselves.
        devices = jax.local_devices() if needed == 1 else jax.devices()
    if needed > len(devices):
        shape = " x ".join(f"{name}={size}" for name, size in zip(MESH_AXES, sizes, strict=True) if size > 1)
        raise UserError(f"the mesh {shape} needs {needed} devices; there are {len(devices)}")
    devices, types = devices[:needed], (AxisType.Auto,) * 4
    found = islands(devices)
    count = len(set(found))
    if math.prod(parts) == 1 and (count == 1 or devices[0].platform != "tpu"):
        return Mesh(create_device_mesh(sizes, devices, allow_split_physical_axes=True), MESH_AXES, axis_types=types)
    if math.prod(parts) != count:
        raise UserError(
            f"mesh.dcn_data={dcn_data} times mesh.dcn_fsdp={dcn_fsdp} must be the number of slices, and the devices are in {count}"
        )
    within = tuple(size // n for size, n in zip(sizes, parts, strict=True))
    by_process = found == [device.process_index for device in devices]
    placed = create_hybrid_device_mesh(
        within, parts, devices, process_is_granule=by_process, allow_split_physical_axes=True
    )
    return Mesh(placed, MESH_AXES, axis_types=types)


def islands(devices) -> list[int]:
    """The number of each device's slice; away from TPUs, where all are in one slice or know of none, of its process: links end
    there."""
    slices = [getattr(device, "slice_index", None) or 0 for device in devices]
    one = len(set(slices)) == 1 and devices[0].platform != "tpu"
    return [device.process_index for device in devices] if one else slices


@functools.cache
def _log_replicated(name: str, size: int, parts: int):
    logging.getLogger("jaxeff").info("axis %r of size %d is not divisible by %d: replicated", name, size, parts)


def pspec(axes, shape, mesh, rules: Rules = RULES, n_stacked: int = 0) -> PartitionSpec:
    """The PartitionSpec of an array with logical `axes` and `shape`.

    The leading `n_stacked` dimensions number equal weights and take their mesh axes first: where experts are spread over
    devices, what is inside an expert is not spread over the same ones.

    Raises UserError for an unknown axis name, and when two dimensions of one weight fall on the same mesh axis.
    """
    sizes = dict(mesh.shape)
    used: dict[str, str] = {}
    outer: set[str] = set()
    entries = []
    for i, (name, size) in enumerate(zip(axes, shape, strict=True)):
        targets = tuple(t for t in rules.of_axis(name) if sizes.get(t, 1) > 1 and t not in outer)
        parts = math.prod(sizes[t] for t in targets)
        if size % parts:
            _log_replicated(name, size, parts)
            targets = ()
        for target in targets:
            if target in used:
                raise UserError(f"axes {used[target]!r} and {name!r} of one array both fall on mesh axis {target!r}")
            used[target] = name
        if i < n_stacked:
            outer |= set(targets)
        entries.append(targets[0] if len(targets) == 1 else targets or None)
    return PartitionSpec(*entries)


def shardings(specs, mesh, rules: Rules = RULES):
    """A NamedSharding for each Spec of the tree."""

    def one(spec):
        return NamedSharding(mesh, pspec(spec.axes, spec.shape, mesh, rules, spec.n_stacked))

    return jax.tree.map(one, specs)


def constrain(x: jax.Array, axes, mesh=None, rules: Rules = RULES) -> jax.Array:
    """Tell the compiler how an activation is laid out; without a mesh, x itself. Used at block boundaries only."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, pspec(axes, x.shape, mesh, rules)))


def batch_sharding(mesh, rules: Rules = RULES) -> NamedSharding:
    """The sharding of a batch's leading dimension."""
    targets = tuple(t for t in rules.of_axis("batch") if mesh.shape[t] > 1)
    return NamedSharding(mesh, PartitionSpec(targets or None))
