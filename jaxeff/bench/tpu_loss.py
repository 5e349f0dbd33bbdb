"""The head and the loss of a training step compiled ahead of time for TPUs, without one. B batch, T time, D model, V vocabulary."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxeff.bench.record import record
from jaxeff.core.sharding import batch_sharding, make_mesh
from jaxeff.core.target import compiler_options, lowering_for
from jaxeff.evaluate.flops import memory
from jaxeff.ops.losses import cross_entropy
from jaxeff.plan.chips import Chip, chip_of, devices_of
from jaxeff.plan.collectives import Links
from jaxeff.plan.hlo import Module
from jaxeff.plan.timeline import Timeline


def tpu_loss(
    d_model: str = "2048,4096",
    vocab: str = "32768",
    batch: str = "2,4,6,8",
    length: int = 2048,
    topology: str = "v5e:4x4",
) -> dict:
    """Head and loss with their gradients compiled for TPUs that are not there: time over that of the three products at the peak.

    `batch` are rows a chip; sizes with commas, each with each. x is bfloat16, the head float32, spread over all chips. Milliseconds
    are the planner's, without waiting for other chips. Needs libtpu.
    """
    mesh, chip = make_mesh(fsdp=len(devices_of(topology)), devices=devices_of(topology)), chip_of(topology)
    d_models, vocabs, batches = ([int(n) for n in text.split(",")] for text in (d_model, vocab, batch))
    rows = [_one(d, v, b, length, mesh, chip) for d in d_models for v in vocabs for b in batches]
    worst = max(rows, key=lambda row: row["over ideal"])
    return record(
        "tpu-loss",
        ours=worst["ms"],
        peer=worst["ideal ms"],
        unit="ms",
        ratio=worst["over ideal"],
        rows=rows,
        topology=topology,
        length=length,
        meaning="estimated time over 6 N D V FLOPs at the peak, where it is most; less is better",
    )


def _one(d_model: int, vocab: int, batch: int, length: int, mesh, chip: Chip) -> dict[str, Any]:
    def loss(x_BTD, head_VD, targets_BT, mask_BT):
        loss_sum, told = cross_entropy(x_BTD, head_VD, targets_BT, mask_BT, mesh=mesh)
        return loss_sum / told["n_targets"]

    shape_BT = batch * mesh.size, length
    tokens = lambda dtype, *d: jax.ShapeDtypeStruct((*shape_BT, *d), dtype, sharding=batch_sharding(mesh))
    head_VD = jax.ShapeDtypeStruct(
        (vocab, d_model), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    )
    arrays = tokens(jnp.bfloat16, d_model), head_VD, tokens(jnp.int32), tokens(jnp.float32)
    gradients = jax.jit(jax.grad(loss, (0, 1)), out_shardings=tuple(a.sharding for a in arrays[:2]))
    with lowering_for("tpu"):
        lowered = gradients.trace(*arrays).lower(lowering_platforms=("tpu",))
        compiled = lowered.compile(compiler_options=compiler_options(mesh))
    works = Timeline(Module(compiled.as_text()), Links(mesh, chip), chip).of().works
    seconds = sum(work.times * work.seconds for work in works)
    ideal = 6 * batch * length * d_model * vocab / chip.flops
    return {
        "D": d_model,
        "V": vocab,
        "tokens a chip": batch * length,
        "ms": 1e3 * seconds,
        "ideal ms": 1e3 * ideal,
        "over ideal": seconds / ideal,
        "temporary MiB": memory(compiled)["temporary"] / 2**20,
    }
