"""Each mixer's training step compiled ahead of time for a TPU, without one: whether it compiles, what it needs, how much of its
estimated time is matrix products. B batch, T time, D model."""

import os
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxeff.bench.cycles import estimated
from jaxeff.bench.record import record
from jaxeff.core.errors import UserError, lookup
from jaxeff.core.precision import POLICIES
from jaxeff.core.sharding import make_mesh, shardings
from jaxeff.core.spec import abstract
from jaxeff.core.target import lowering_for
from jaxeff.evaluate.flops import memory
from jaxeff.mixers.base import Ctx, bind
from jaxeff.mixers.registry import MIXERS

GIB = 2**30
# What tells the compiler's library that the machine it is on is no TPU.
ALONE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost"}


def tpu(
    mixers: str = "all",
    d_model: int = 2048,
    length: int = 4096,
    batch: int = 8,
    topology: str = "v5e:2x4",
    clock: float = 1.5e9,
) -> dict:
    """The training step of every mixer compiled for a TPU that is not there: time, memory, share of matrix products.

    The gradient of one layer in bfloat16 with respect to parameters and input, weights and batch spread over all chips (fsdp).
    Milliseconds are the compiler's cycles at `clock` Hz, without waiting for memory and other chips. Needs libtpu.
    """
    names = list(MIXERS) if mixers == "all" else mixers.split(",")
    mesh = _mesh(topology)
    rows = [_one(name, bind(lookup(MIXERS, name, "mixer")(), d_model), mesh, batch, length, clock) for name in names]
    least = min(rows, key=lambda row: row["matmul share"])
    return record(
        "tpu",
        ours=least["ms"],
        peer=max(row["ms"] for row in rows),
        unit="ms",
        ratio=least["matmul share"],
        rows=rows,
        topology=topology,
        d_model=d_model,
        length=length,
        batch=batch,
        meaning=f"the least share of matrix products in the estimated cycles, {least['mixer']}'s; more is better",
    )


def _mesh(topology: str):
    from jax.experimental import topologies

    os.environ.update({name: value for name, value in ALONE.items() if name not in os.environ})
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # the compiler's library is not there, or knows no such machine
        raise UserError(f"cannot compile for {topology!r}: {error}; pip install libtpu") from error
    return make_mesh(fsdp=len(devices), devices=devices)


def _one(name: str, layer, mesh, batch: int, length: int, clock: float) -> dict[str, Any]:
    def loss(params, x_BTD):
        y_BTD = layer.apply(params, x_BTD, ctx=Ctx(mesh=mesh, policy=POLICIES["bfloat16"])).y
        return jnp.sum(jnp.sin(y_BTD.astype(jnp.float32)))

    shape = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    specs = layer.specs()
    params = jax.tree.map(shape, abstract(specs), shardings(specs, mesh))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    x_BTD = jax.ShapeDtypeStruct((batch, length, layer.d_model), jnp.bfloat16, sharding=rows)
    start = time.perf_counter()
    with lowering_for("tpu"):
        compiled = (
            jax.jit(jax.grad(loss, argnums=(0, 1))).trace(params, x_BTD).lower(lowering_platforms=("tpu",)).compile()
        )
    took, cycles = time.perf_counter() - start, estimated(compiled.as_text())
    return {
        "mixer": name,
        "ms": 1e3 * cycles.total / clock,
        "matmul share": cycles.matmul / cycles.total,
        "temporary GiB": memory(compiled)["temporary"] / GIB,
        "compiled in s": took,
    }
