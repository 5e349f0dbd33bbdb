"""What the Mosaic kernels share of recurrences whose channels are each by themselves: tokens follow each other within a register.

B batch, T time, D channels, C channels of a step, S tokens of a register.
"""

from collections.abc import Callable

import jax
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding, PartitionSpec

from jaxeff.core.sharding import Rules, pspec
from jaxeff.ops.pallas.chunks import CHUNK, LANES

SUBLANES = 8


def why_not(x_BTD: jax.Array, mesh, rules: Rules, axis: str) -> str | None:
    """Why a kernel cannot serve a call, or None. axis: the logical axis of channels."""
    _, T, D = x_BTD.shape
    if T < CHUNK:
        return f"needs {CHUNK} tokens, found {T}"
    if mesh is not None:
        spread = NamedSharding(mesh, pspec(("batch", None, axis), x_BTD.shape, mesh, rules))
        D = spread.shard_shape(x_BTD.shape)[2]
    return f"needs channels of a multiple of {LANES}, found {D}" if D % LANES else None


def on_each_device(run: Callable, arrays: dict, axes: dict, mesh, rules: Rules):
    """`run(**arrays)`, which gives y as x and a state, by each device of the mesh for its rows and channels. arrays: by name, or
    None; axes: their logical axes. Mosaic demands that all axes of the mesh are manual: inside `jax.shard_map` over some, these are
    the others."""
    manual = set(jax.sharding.get_abstract_mesh().manual_axes)
    others = set(() if mesh is None or mesh.size == 1 else mesh.axis_names) - manual
    if not others:
        return run(**arrays)
    specs = {n: PartitionSpec() if x is None else pspec(axes[n], x.shape, mesh, rules) for n, x in arrays.items()}
    spread = dict(in_specs=(specs,), out_specs=(specs["x"], specs["state"]), axis_names=others, check_vma=False)
    return jax.shard_map(lambda arrays: run(**arrays), mesh=None if manual else mesh, **spread)(arrays)


def channels_of_a_step(D: int, most: int) -> int:
    """C."""
    return next(c for c in range(min(most, D) // LANES * LANES, 0, -LANES) if D % c == 0)


def rows(n):
    """Where the tokens of register n lie."""
    return pl.ds(pl.multiple_of(SUBLANES * n, SUBLANES), SUBLANES)
