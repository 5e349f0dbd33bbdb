"""Model FLOPs utilisation: what a step would take if the devices did nothing but the model's own products, at their peak."""

from collections.abc import Mapping
from typing import Any

import jax

from jaxeff.core.peaks import peak
from jaxeff.core.spec import abstract
from jaxeff.core.target import lowering_for
from jaxeff.evaluate.flops import flops
from jaxeff.mixers.base import Ctx
from jaxeff.train.experiment import Experiment


def ideal_seconds(experiment: Experiment, mesh, batch: Mapping[str, Any]) -> float | None:
    """Of a step on `batch`, all of its rows: the matrix products of the forward pass, three times for the gradients, over the peak
    of the mesh's devices. None where no peak is known; then nothing is traced."""
    at_most = peak(mesh.devices.flat[0].device_kind)
    return None if at_most is None else model_flops(experiment, batch) / (mesh.size * at_most)


def model_flops(experiment: Experiment, batch: Mapping[str, Any]) -> float:
    """Of the matrix products of a step, of all devices: those that the model itself has, nothing counted twice that is computed
    again, and no optimizer. batch: arrays or their shapes; nothing is computed."""
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}

    def forward(params, batch):
        return experiment.objective.sums(experiment.model, params, batch, Ctx(policy=experiment.policy))

    with lowering_for("cpu"):  # where no kernel hides what it multiplies
        return 3 * flops(forward, abstract(experiment.model.specs()), shapes)["matmul"]
