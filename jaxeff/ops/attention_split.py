"""Kernels under a mesh: the partitioner cannot look into one, so `jax.shard_map` is opened round it, once, and each device runs it
on its rows of the batch and its heads. B batch, T time, H query heads, K kv heads, p devices that share the heads.

The rules table says which mesh axes cut the batch and the query heads; keys and values go where their queries are. Where the heads
are cut into more pieces than there are kv heads, every device gets all kv heads and takes the one that its queries read. All axes
of the mesh are manual inside, as Mosaic demands; along those that cut neither, devices do the same work.
"""

import math
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from jaxeff.core.sharding import RULES, Rules, pspec
from jaxeff.ops.attention_block import Inputs, Options


def why_not_split(x: Inputs, mesh, rules: Rules = RULES) -> str | None:
    """Why a kernel cannot serve this call under a mesh: a device's query heads must read whole kv heads, or one of them."""
    if not _is_split(mesh):
        return None
    p, kv_heads = _devices(_cuts(x, mesh, rules)[1], mesh), x.k.shape[2]
    if kv_heads % p and p % kv_heads:
        return f"cannot be split: {kv_heads} kv heads over {p} devices, of which neither number divides the other"
    return None


def on_each_device(
    kernel: Callable, x: Inputs, options: Options, mesh=None, rules: Rules = RULES
) -> tuple[jax.Array, None]:
    """`kernel(x, options)`, (o [B, T, H, E], None), by each device of the mesh for its rows and heads; where there is no mesh of
    several devices, or inside `shard_map`, for all that it is given."""
    if not _is_split(mesh):
        return kernel(x, options)
    rows, heads = _cuts(x, mesh, rules)
    p, kv_heads = _devices(heads, mesh), x.k.shape[2]
    one_for_several = kv_heads % p != 0

    def own(q, k, v, segments):
        if one_for_several:
            mine = jax.lax.axis_index(heads) * kv_heads // p
            k, v = (jax.lax.dynamic_slice_in_dim(a, mine, 1, axis=2) for a in (k, v))
        return kernel(Inputs(q, k, v, segments=segments, kv_segments=segments), options)[0]

    of_queries = PartitionSpec(rows, None, heads)
    of_keys = PartitionSpec(rows) if one_for_several else of_queries
    of_segments = PartitionSpec(rows if x.segments is not None and x.segments.shape[0] == x.q.shape[0] else None)
    in_specs = (of_queries, of_keys, of_keys, of_segments)
    split = jax.shard_map(own, mesh=mesh, in_specs=in_specs, out_specs=of_queries, check_vma=False)
    return split(x.q, x.k, x.v, x.segments), None


def _is_split(mesh) -> bool:
    return mesh is not None and mesh.size > 1 and not jax.sharding.get_abstract_mesh().manual_axes


def _cuts(x: Inputs, mesh, rules: Rules):
    """The mesh axes that cut (batch, query heads), None for none, as in a PartitionSpec."""
    spec = pspec(("batch", None, "heads", None), x.q.shape, mesh, rules)
    return spec[0], spec[2]


def _devices(axes, mesh) -> int:
    """How many pieces these mesh axes cut something into."""
    return math.prod(mesh.shape[name] for name in ((axes,) if isinstance(axes, str) else axes or ()))
