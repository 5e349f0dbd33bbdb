"""Our training step and MaxText's of the same model, both compiled ahead of time for a TPU and planned by the same planner."""

import math
import os
import re
import tempfile
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxeff.bench.peer import Peer
from jaxeff.bench.record import record
from jaxeff.core.errors import UserError, lookup
from jaxeff.core.target import WINDOWS, tpu_options
from jaxeff.mixers import GQA, MLP
from jaxeff.mixers.base import bind
from jaxeff.mixers.heads import head_count, head_width
from jaxeff.models import Block
from jaxeff.plan.chips import chip_of, devices_of
from jaxeff.plan.collectives import Links
from jaxeff.plan.estimate import Estimate, plan
from jaxeff.plan.hlo import Module
from jaxeff.plan.parts import WAITING
from jaxeff.plan.timeline import Timeline
from jaxeff.train.config_file import load
from jaxeff.train.experiment import Experiment

GIB = 2**30
# Compiler flags of MaxText's own lists, for v5e; `whole` is its DISABLE_COLLECTIVE_MATMUL besides, `ours` what our step has.
V5E = (
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true --xla_tpu_data_parallel_opt_different_sized_ops=true"
    " --xla_tpu_enable_async_collective_fusion=true --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true"
    " --xla_tpu_enable_async_collective_fusion_multiple_steps=true --xla_tpu_overlap_compute_collective_tc=true"
    " --xla_enable_async_all_gather=true"
)
OURS = "".join(f" --{name}={value}" for name, value in tpu_options("TPU v5e").items())
FLAGS = {"none": "", "v5e": V5E, "whole": V5E + f" --{WINDOWS}=1000000", "ours": V5E + OURS}


def maxtext(
    config: str = "configs/tpu/gqa_1b.py",
    topology: str = "v5e:4x4",
    remat: str = "full,minimal_with_context",
    flags: str = "v5e,whole",
    peer_python: str | None = None,
) -> dict:
    """Our training step and MaxText's of the same model, compiled for a TPU that is not there, planned by the same planner.

    `config`: one of ours, layers of GQA and a gated MLP, on data and fsdp. `remat`, `flags`: MaxText's policies and lists of
    compiler flags (none, v5e, whole: v5e and no product in windows), with commas: each pair is one compilation. FLOPs of MFU are
    those of our model. MaxText's attention kernel does not tell its FLOPs: it is taken for what ours is, the causal half of the
    pairs, at the share of the peak that the planner assumes of kernels. Needs libtpu, and MaxText by `make maxtext-env` or in the
    environment of the interpreter `peer_python`.
    """
    experiment = load(config)
    chosen = [
        (policy, name, lookup(FLAGS, name, "list of flags")) for name in flags.split(",") for policy in remat.split(",")
    ]
    devices_of(topology)  # before the peer, which has what this sets in its environment
    asked = [(f"MaxText, {policy}, {name}", options(experiment, topology, policy, xla)) for policy, name, xla in chosen]
    own = plan(experiment, topology)
    if not own.fits:
        raise UserError(f"{config} does not fit {topology}: there is nothing to compare")
    with Peer("maxtext", peer_python) as other:
        rows = [_theirs(name, other, given, own, topology) for name, given in asked]
    ours = _row(f"jaxeff, {experiment.model.remat}", own, own.seconds, own.parts.get(WAITING, 0.0), own.used)
    fitting = [row for row in rows if row["fits"]]
    if not fitting:
        raise UserError(f"no step of MaxText's can be compiled for {topology}: {rows[0]['error']}")
    best = min(fitting, key=lambda row: row["ms"])
    return record(
        "maxtext",
        ours=ours["ms"],
        peer=best["ms"],
        unit="ms",
        ratio=best["ms"] / ours["ms"],
        rows=[ours, *rows],
        config=config,
        topology=topology,
        meaning=f"the planned step of {best['step']}, the quickest of MaxText's, over ours; above 1 we are ahead",
    )


def options(e: Experiment, topology: str, remat: str, flags: str) -> dict[str, Any]:
    """MaxText's options for the model, batch and chips of an experiment. Raises UserError for a model that it has not."""
    model, chips = e.model, math.prod(map(int, topology.partition(":")[2].split("x")))
    layers = [entry for stage in model.stages for entry in stage.pattern]
    attention, mlp = _parts(layers[0] if len(layers) == 1 else None, model.d_model)
    if e.mesh.data * e.mesh.fsdp != chips or e.precision != "bfloat16" or e.data.batch_size % chips:
        raise UserError(
            f"compared are bfloat16, {chips} chips over mesh.data and mesh.fsdp, and a batch of a multiple of {chips} rows"
        )
    return {
        "internal_compile": True,
        "internal_compile_num_devices": chips,
        "compile_topology": topology,
        "compile_topology_num_slices": 1,
        "compile_xla_flags": flags,
        "base_emb_dim": model.d_model,
        "base_num_query_heads": head_count(attention),
        "base_num_kv_heads": attention.kv_heads,
        "head_dim": head_width(attention),
        "base_mlp_dim": mlp.hidden,
        "base_num_decoder_layers": model.stages[0].repeats,
        "vocab_size": model.vocab_size,
        "logits_via_embedding": model.tied,
        "normalize_embedding_logits": False,
        "use_iota_embed": True,
        "max_target_length": e.data.seq_len,
        "per_device_batch_size": e.data.batch_size // chips,
        "ici_data_parallelism": e.mesh.data,
        "ici_fsdp_parallelism": e.mesh.fsdp,
        "allow_split_physical_axes": True,
        "remat_policy": remat,
        "attention": "flash",
        "dtype": "bfloat16",
        "weight_dtype": "float32",
        "opt_type": "adamw",
        "enable_dropout": False,
        "enable_checkpointing": False,
        "dataset_type": "synthetic",
        "run_name": "bench",
    }


def _parts(block: Any, d_model: int) -> tuple[GQA, MLP]:
    if isinstance(block, Block) and isinstance(block.mixer, GQA) and isinstance(block.mlp, MLP):
        attention, mlp = bind(block.mixer, d_model), bind(block.mlp, d_model)
        plain = mlp.gated and mlp.activation == "silu" and not mlp.biases and not attention.biases
        if plain and attention.causal and attention.window is None and attention.qk_norm is None:
            return attention, mlp
    raise UserError(
        "compared are models of one stage of blocks of causal GQA and a gated MLP with silu, without biases or windows"
    )


def told(text: str, flops: int, width: int) -> str:
    """The text of a module in which Splash attention's kernels tell what they multiply, as ours do."""
    return re.sub(r'(op_name="[^"]*splash_mha_[^"]*)"', rf'\1/kernel_flops_{flops}_width_{width}"', text)


def _theirs(name: str, other: Peer, given: dict[str, Any], own: Estimate, topology: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "step.hlo")
        answer = other.ask(do="compile", options=given | {"base_output_directory": folder}, text=path)
        if "error" in answer:
            return {"step": name, "fits": False, "error": answer["error"][:100]}
        with open(path) as file:
            text = file.read()
    t, width = given["max_target_length"], given["head_dim"]
    flops = 4 * given["per_device_batch_size"] * given["base_num_query_heads"] * (t * (t + 1) // 2) * width
    by_id, chip = {device.id: device for device in devices_of(topology)}, chip_of(topology)
    laid = np.array([by_id[i] for i in answer["devices"]]).reshape([*answer["axes"].values()])
    links = Links(Mesh(laid, tuple(answer["axes"])), chip)
    spent = Timeline(Module(told(text, flops, width)), links, chip).of()
    if spent.unknown:
        raise UserError(f"{name}: kernels of which there is no estimate: {', '.join(spent.unknown)}")
    return _row(name, own, spent.seconds, spent.parts[WAITING], sum(answer["memory"].values()))


def _row(name: str, own: Estimate, seconds: float, waiting: float, used: int) -> dict[str, Any]:
    return {
        "step": name,
        "fits": True,
        "ms": 1e3 * seconds,
        "MFU": own.flops / (seconds * own.chips * own.peak),
        "waiting ms": 1e3 * waiting,
        "GiB a chip": used / GIB,
    }
