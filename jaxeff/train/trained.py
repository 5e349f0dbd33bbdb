"""A trained model, read back from its workdir: for evaluation, generation, notebooks, and as the base of another run."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError
from jaxeff.core.sharding import make_mesh
from jaxeff.core.tree import paths
from jaxeff.data import TextData
from jaxeff.models.lm import LM
from jaxeff.train.checkpoint import FROZEN, Checkpoints, checksums, read_frozen
from jaxeff.train.experiment import Experiment
from jaxeff.train.kept import kept
from jaxeff.train.progress import Silent
from jaxeff.train.state import State
from jaxeff.train.step import Step, compiled, start
from jaxeff.train.workdir import check_corpus, read_run, stored_experiment
from jaxeff.transforms.multi_lora import together

PUBLIC = "hf:"  # before the folder of a public checkpoint, where a run could stand


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run's experiment, data, step and weights (the averaged ones where the run kept an average)."""

    experiment: Experiment
    prepared: Any
    step: int
    weights: Any


def load_trained(workdir, report: Silent | None = None, any_base: bool = False, splits: Sequence[str] = ()) -> Trained:
    """The newest readable checkpoint of `workdir`, on one device, whatever mesh trained it. Changes nothing there.

    any_base: take frozen weights as they are now, even if the run was trained on others. splits: those of the data that will be
    read; what the workdir keeps of its text suffices for some, and where it does, neither corpus nor cache is asked.

    Raises UserError when there is no run, no checkpoint, none that can be read, the corpus or the base is another one by now.
    """
    report = report or Silent()
    experiment = stored_experiment(workdir)
    prepared = _prepared(experiment, workdir, report, splits)
    return Trained(experiment, prepared, *restored(experiment, workdir, make_mesh(), report, any_base))


def _prepared(experiment: Experiment, workdir, report: Silent, splits: Sequence[str]):
    run = read_run(workdir)
    if isinstance(experiment.data, TextData):
        prepared = kept(workdir, experiment.data, run["corpus"])
        if prepared is not None and prepared.splits.keys() >= set(splits):
            return prepared
    prepared = experiment.data.prepare(report=report.stage)
    check_corpus(run, prepared.fingerprint, workdir)
    return prepared


def load_adapters(workdirs: Sequence[str], report: Silent | None = None, any_base: bool = False) -> Trained:
    """Runs that trained low-rank adapters on one base, as one whose weights have all of them: `transforms.multi_lora.choose` sets
    which is for which example. Experiment, data and step are those of the first.

    Raises UserError as `load_trained` does, and for runs of other models, data, bases or kinds of adapters.
    """
    runs = [load_trained(workdir, report, any_base) for workdir in workdirs]
    for workdir, run in zip(workdirs[1:], runs[1:], strict=True):
        check_same(workdirs[0], runs[0], workdir, run)
    return dataclasses.replace(runs[0], weights=together([run.weights for run in runs]))


def check_same(first: str, run: Trained, second: str, other: Trained) -> None:
    """Raises UserError where two runs are of other models, or read text otherwise."""
    if run.experiment.model != other.experiment.model or run.prepared.fingerprint != other.prepared.fingerprint:
        raise UserError(f"{second} is of another model, corpus or tokenizer than {first}")


def restored(experiment: Experiment, workdir, mesh, report: Silent, any_base: bool = False) -> tuple[int, Any]:
    """(step, all weights) of the newest readable checkpoint of a run."""
    step = compiled(experiment, mesh)
    checkpoints = Checkpoints(workdir, read_only=True)
    found = checkpoints.newest(lambda number: checkpoints.restore_weights(step.abstract.params, number), report.warn)
    checkpoints.close()
    if found is None:
        raise UserError(f"{workdir} has no checkpoint yet")
    number, (trained, record) = found
    frozen = frozen_weights(experiment, workdir, step, record.get("frozen"), report, any_base)
    return number, experiment.weights.whole(trained, frozen)


def initial(experiment: Experiment, step: Step, report: Silent) -> State:
    """The state of a run that has not begun: from its seed, or from its base.

    Raises UserError when the base is no run, cannot be read, or is of other sizes.
    """
    if experiment.base is None:
        return start(experiment, step)
    try:
        plain = plain_weights(experiment.base, experiment.model, step.mesh, report)
    except UserError as error:
        raise UserError(f"base={experiment.base}: {error}") from None
    return start(experiment, step, plain)


def frozen_weights(
    experiment: Experiment,
    workdir,
    step: Step,
    checksum: dict[str, int] | None,
    report: Silent,
    any_base: bool = False,
) -> Any:
    """The weights that a run does not train: those that its workdir keeps, or made again from its seed or base.

    checksum: as the run wrote it. Raises UserError when they are others by now, unless any base will do.
    """
    if not jax.tree.leaves(step.abstract.frozen):
        return step.abstract.frozen
    frozen, made_of = read_frozen(workdir, step.abstract.frozen), f"{workdir}/{FROZEN}"
    if frozen is None:
        frozen = initial(experiment, step, report).frozen
        made_of = "the seed" if experiment.base is None else f"base={experiment.base}"
    found = checksums(frozen)
    if found != checksum and not any_base:
        hashes = " there, ".join(f"{sum((part or {}).values()) % 2**32:08x}" for part in (checksum, found))
        raise UserError(
            f"the frozen weights made from {made_of} are not those that this run was trained on: checksum {hashes} now;"
            " jaxeff eval and generate take them all the same with --any-base"
        )
    return frozen


def plain_weights(workdir: str, model: LM, mesh, report: Silent) -> Any:
    """The weights of another run as plain arrays for `model`, whatever that run's transforms made of them; or those of a public
    checkpoint, `hf:DIR`.

    Raises UserError when it is no run, has no readable checkpoint, or its model has other weights; of a public checkpoint, when it
    cannot be read or its model computes something else.
    """
    if workdir.startswith(PUBLIC):
        return public_weights(workdir.removeprefix(PUBLIC), model, mesh)
    theirs = stored_experiment(workdir)
    shapes, wanted = ({path: s.shape for path, s in paths(m.specs()).items()} for m in (theirs.model, model))
    differing = [path for path in {**wanted, **shapes} if shapes.get(path) != wanted.get(path)]
    if differing:
        path = differing[0]
        raise UserError(
            f"{workdir}: that model has other weights: {path} is {shapes.get(path, 'absent')} there, "
            f"{wanted.get(path, 'absent')} here"
        )
    _, weights = restored(theirs, workdir, mesh, report)
    return theirs.weights.plan.merge(weights)


def public_weights(folder, model: LM, mesh=None) -> Any:
    """Those of a public checkpoint for `model`, float32. Raises UserError where it cannot be read, or holds a model that computes
    something else."""
    from jaxeff.interop import hf

    _, theirs = hf.read_config(folder)
    found = hf.difference(hf.canonical(theirs), hf.canonical(model))
    if found is not None:
        raise UserError(
            f"{PUBLIC}{folder} holds another model: its {found} for the model here; jaxeff train --base takes it over"
        )
    return hf.load(folder, jnp.float32, mesh)[1]
