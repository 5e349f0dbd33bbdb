"""Training steps compiled ahead of time for a TPU, without one: each mixer's, whether it compiles, what it needs, how much of its
estimated time is matrix products; and a large model's with adapters, what memory it needs. B batch, T time, D model."""

import dataclasses
import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxeff.bench.record import record
from jaxeff.bench.training import Size, random_batch
from jaxeff.bench.transforms import MIB, bytes_of, experiment
from jaxeff.core.errors import lookup
from jaxeff.core.precision import POLICIES
from jaxeff.core.sharding import batch_sharding, make_mesh, shardings
from jaxeff.core.spec import abstract, count
from jaxeff.core.target import compiler_options, lowering_for
from jaxeff.data import TextData
from jaxeff.evaluate.flops import memory
from jaxeff.mixers import GQA, MLP
from jaxeff.mixers.base import Ctx, bind
from jaxeff.mixers.registry import MIXERS
from jaxeff.models import LM, Block, Stage
from jaxeff.plan.chips import Chip, chip_of, devices_of
from jaxeff.plan.collectives import Links
from jaxeff.plan.estimate import plan
from jaxeff.plan.hlo import Module
from jaxeff.plan.parts import WAITING
from jaxeff.plan.timeline import Timeline
from jaxeff.train.experiment import Experiment, MeshShape
from jaxeff.train.step import make_step

GIB = 2**30


def tpu(
    mixers: str = "all",
    d_model: int = 2048,
    length: int = 4096,
    batch: int = 8,
    topology: str = "v5e:2x4",
) -> dict:
    """The training step of every mixer compiled for a TPU that is not there: time, memory, share of matrix products.

    The gradient of one layer in bfloat16 with respect to parameters and input, weights and batch spread over all chips (fsdp).
    Milliseconds are the compiler's cycles at the chip's clock, and what `jaxeff.plan.timeline` says of kernels, without waiting for
    memory and other chips. Needs libtpu.
    """
    names = list(MIXERS) if mixers == "all" else mixers.split(",")
    devices = devices_of(topology)
    mesh, chip = make_mesh(fsdp=len(devices), devices=devices), chip_of(topology)
    rows = [_one(name, bind(lookup(MIXERS, name, "mixer")(), d_model), mesh, batch, length, chip) for name in names]
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


def tpu_transforms(
    d_model: int = 2048,
    layers: int = 16,
    vocab: int = 32768,
    length: int = 4096,
    batch: int = 1,
    rank: int = 16,
    topology: str = "v5e:2x4",
) -> dict:
    """Memory of a training step of LoRA and of QLoRA on one chip of a TPU that is not there, for a model of 1.0 B weights.

    Llama-like, in bfloat16, frozen weights too; the backward pass recomputes each layer. Needs libtpu.
    """
    size = Size(d_model, length, batch, layers, vocab)
    mesh = make_mesh(devices=devices_of(topology)[:1])
    rows = [_adapted(name, size, rank, mesh) for name in ("lora", "qlora")]
    lora, qlora = (row["temporary MiB"] for row in rows)
    return record(
        "tpu-transforms",
        ours=qlora,
        peer=lora,
        unit="MiB",
        ratio=qlora / lora,
        rows=rows,
        topology=topology,
        weights=count(size.lm.specs()),
        size=str(size),
        rank=rank,
        meaning="temporary memory of QLoRA over that of LoRA; less is better",
    )


def published(runs: str = "all", remat: str = "full") -> dict:
    """Tokens a second and chip of published runs, and what the planner says of the same models, lengths and chips.

    `runs`: names with commas. Rows a chip and what is computed again are ours, as what was published does not always say.
    Needs libtpu.
    """
    names = list(PUBLISHED) if runs == "all" else runs.split(",")
    rows = [_published(name, lookup(PUBLISHED, name, "published run"), remat) for name in names]
    worst = max(rows, key=lambda row: abs(row["error"]) if row["fits"] else 0.0)
    return record(
        "published",
        ours=worst["planned tokens/s"],
        peer=worst["published tokens/s"],
        unit="tokens/s a chip",
        ratio=1 + worst["error"],
        rows=rows,
        remat=remat,
        meaning=f"planned over published, where they differ most: {worst['run']}",
    )


class Published(NamedTuple):
    """A run: its topology, tokens a row and rows a chip, tokens a second and chip; and the model's sizes."""

    topology: str
    length: int
    rows: int
    speed: float
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    hidden: int
    vocab: int

    def experiment(self, remat: str) -> Experiment:
        """On all chips, weights spread over them."""
        chips = math.prod(map(int, self.topology.partition(":")[2].split("x")))
        block = Block(GQA(n_heads=self.heads, n_kv_heads=self.kv_heads, head_dim=128), MLP(d_hidden=self.hidden))
        model = LM(self.vocab, self.d_model, (Stage((block,), self.layers),), tied=False, remat=remat)
        data = TextData(seq_len=self.length, batch_size=self.rows * chips)
        return Experiment(model, data, mesh=MeshShape(fsdp=chips), precision="bfloat16")


# Of MaxText, "Optimized models tiering"; 256 chips each.
PUBLISHED = {
    "llama3.1-8b-v6e": Published("v6e:16x16", 8192, 3, 7207, 32, 4096, 32, 8, 14336, 128256),
    "llama2-70b-v6e": Published("v6e:16x16", 4096, 4, 900, 80, 8192, 64, 8, 28672, 32000),
    "llama3.1-70b-v6e": Published("v6e:16x16", 8192, 2, 960, 80, 8192, 64, 8, 28672, 128256),
    "llama2-70b-v5p": Published("v5p:4x8x8", 4096, 4, 692, 80, 8192, 64, 8, 28672, 32000),
}


def _published(name: str, run: Published, remat: str) -> dict[str, Any]:
    found = plan(run.experiment(remat), run.topology)
    planned = found.tokens_per_s / found.chips
    return {
        "run": name,
        "published tokens/s": run.speed,
        "planned tokens/s": planned,
        "error": planned / run.speed - 1,
        "planned MFU": found.mfu,
        "waiting": found.parts.get(WAITING, 0.0) / found.seconds if found.fits else 1.0,
        "GiB a chip": found.used / GIB,
        "fits": found.fits,
    }


def _adapted(method: str, size: Size, rank: int, mesh) -> dict[str, Any]:
    run = experiment(size, method, rank, "bfloat16")
    step = make_step(dataclasses.replace(run, model=dataclasses.replace(run.model, remat="full")), mesh)
    shape = lambda x, dtype, sharding: jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding)
    half = lambda x: shape(x, jnp.bfloat16 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype, x.sharding)
    state = dataclasses.replace(step.abstract, frozen=jax.tree.map(half, step.abstract.frozen))
    tokens = jax.tree.map(lambda x: shape(x, x.dtype, batch_sharding(mesh)), random_batch(size))
    start = time.perf_counter()
    with lowering_for("tpu"):
        compiled = step.step.trace(state, tokens).lower(lowering_platforms=("tpu",)).compile()
    took, found = time.perf_counter() - start, memory(compiled)
    return {
        "method": method,
        "temporary MiB": found["temporary"] / MIB,
        "arguments MiB": found["arguments"] / MIB,
        "frozen MiB": bytes_of(state.frozen) / MIB,
        "compiled in s": took,
    }


def _one(name: str, layer, mesh, batch: int, length: int, chip: Chip) -> dict[str, Any]:
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
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1)), compiler_options=compiler_options(mesh))
        compiled = gradients.trace(params, x_BTD).lower(lowering_platforms=("tpu",)).compile()
    took = time.perf_counter() - start
    works = Timeline(Module(compiled.as_text()), Links(mesh, chip), chip).of().works
    total = sum(work.times * work.seconds for work in works)
    products = sum(work.times * work.seconds for work in works if work.flops)
    return {
        "mixer": name,
        "ms": 1e3 * total,
        "matmul share": products / total,
        "temporary GiB": memory(compiled)["temporary"] / GIB,
        "compiled in s": took,
    }
