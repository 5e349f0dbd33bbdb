"""A trained model, read back from its workdir: for evaluation, generation, and notebooks."""

import dataclasses
from typing import Any

import jax

from jaxeff.core.errors import UserError
from jaxeff.core.sharding import make_mesh, shardings
from jaxeff.core.spec import abstract
from jaxeff.train.checkpoint import Checkpoints
from jaxeff.train.experiment import Experiment
from jaxeff.train.progress import Silent
from jaxeff.train.workdir import check_corpus, read_run, stored_experiment


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run's experiment, data, step and weights (the averaged ones where the run kept an average)."""

    experiment: Experiment
    prepared: Any
    step: int
    weights: Any


def load_trained(workdir, report: Silent | None = None) -> Trained:
    """The newest readable checkpoint of `workdir`, on one device, whatever mesh trained it. Changes nothing there.

    Raises UserError when there is no run, no checkpoint, none that can be read, or the corpus is another one by now.
    """
    report = report or Silent()
    experiment = stored_experiment(workdir)
    prepared = experiment.data.prepare(report=report.stage)
    check_corpus(read_run(workdir), prepared.fingerprint, workdir)
    specs = experiment.model.specs()
    shapes = abstract(specs, experiment.policy.param)
    laid = shardings(specs, make_mesh())
    shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, laid)
    checkpoints = Checkpoints(workdir, read_only=True)
    found = checkpoints.newest(lambda step: checkpoints.restore_weights(shapes, step), report.warn)
    if found is None:
        raise UserError(f"{workdir} has no checkpoint yet")
    return Trained(experiment, prepared, *found)
