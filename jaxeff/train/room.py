"""Whether a run can fit into memory, before anything is allocated."""

import math

import jax.numpy as jnp

from jaxeff.core.memory import check_fits, free_bytes
from jaxeff.core.tree import paths
from jaxeff.train.experiment import Experiment
from jaxeff.train.step import Step

ADVICE = (
    "lower model.d_model, data.batch_size or data.seq_len, raise train.accumulate, or try all the same with --force"
)


def check_room(experiment: Experiment, step: Step) -> None:
    """Raises UserError, naming what is largest, where a device's memory cannot hold what a step needs."""
    check_fits(least_bytes(experiment, step), "a step", ADVICE, free_bytes(step.mesh.devices.flat[0]))


def least_bytes(experiment: Experiment, step: Step) -> dict[str, int]:
    """What one device holds at once, by name: the state, the gradients of what trains, and the residual stream of a micro-batch
    between layers. A lower bound: most of what layers compute is left out."""
    e, shape = experiment, step.mesh.shape
    found = {"weights": 0, "optimizer": 0, "gradients": 0}
    for path, leaf in paths(step.abstract).items():
        part, size = path.partition("/")[0], _held(leaf)
        found["weights" if part in ("params", "frozen", "ema") else "optimizer"] += size
        if part == "params" and e.optim.name != "lomo":
            found["gradients"] += size
    rows = e.data.batch_size * e.data.seq_len // e.train.accumulate
    tokens = rows // (shape["data"] * shape["fsdp"] * shape["sequence"])
    found["activations"] = tokens * e.model.d_model * jnp.dtype(e.policy.compute).itemsize * e.model.n_layers
    return found


def _held(leaf) -> int:
    """Bytes of an abstract leaf on one device."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
