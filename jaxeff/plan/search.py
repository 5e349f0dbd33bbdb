"""Other ways to run the same experiment: what makes it fit, and which mesh or topology is best."""

import dataclasses
from collections.abc import Callable, Iterator

from jaxeff.core.errors import UserError
from jaxeff.plan.chips import devices_of
from jaxeff.plan.estimate import Estimate, plan
from jaxeff.plan.program import Kind
from jaxeff.train.experiment import Experiment, MeshShape

Changed = tuple[str, Experiment]


def changes(experiment: Experiment, chips: int) -> Iterator[Changed]:
    """(as `--set` spells it, the experiment so changed), from what costs least to what costs most: weights spread over all chips,
    then more of the forward pass computed twice, then a batch in more parts."""
    spread = f"mesh.fsdp={chips}"
    if experiment.mesh != MeshShape(fsdp=chips) and experiment.data.batch_size % chips == 0:
        yield spread, dataclasses.replace(experiment, mesh=MeshShape(fsdp=chips))
    order = ("none", "dots", "full")
    for remat in order[order.index(experiment.model.remat) + 1 :]:
        yield f"model.remat={remat}", _remat(experiment, remat)
    parts = experiment.train.accumulate * 2
    rows = experiment.data.batch_size // (experiment.mesh.data * experiment.mesh.fsdp)
    while rows % parts == 0:
        train = dataclasses.replace(experiment.train, accumulate=parts)
        yield f"model.remat=full train.accumulate={parts}", dataclasses.replace(_remat(experiment, "full"), train=train)
        parts *= 2


def _remat(experiment: Experiment, remat: str) -> Experiment:
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, remat=remat))


def fitting(
    experiment: Experiment, topology: str, kind: Kind, tell: Callable[[str], None] = print
) -> tuple[Estimate, str | None, Estimate | None]:
    """(the estimate; where it does not fit, the first of `changes` that does, and its estimate, or None and None)."""
    found = plan(experiment, topology, kind)
    if found.fits or kind != "train":
        return found, None, None
    for change, changed in changes(experiment, found.chips):
        tell(f"does not fit; trying {change}")
        other = plan(changed, topology, kind)
        if other.fits:
            return found, change, other
    return found, None, None


def meshes(experiment: Experiment, topology: str) -> Iterator[Changed]:
    """Every shape of the mesh that spreads the weights over one axis and something else over another: (as `--set` spells it, the
    experiment)."""
    chips = len(devices_of(topology))
    sizes = [n for n in range(1, chips + 1) if chips % n == 0]
    shapes = dict.fromkeys(
        [
            MeshShape(fsdp=chips // n, **{axis: n})
            for axis in ("data", "tensor", "sequence")
            for n in sizes[:-1]
            if chips // n > 1
        ]
        + [MeshShape(data=chips)]
    )
    for shape in shapes:
        spelled = " ".join(
            f"mesh.{f.name}={getattr(shape, f.name)}" for f in dataclasses.fields(shape) if getattr(shape, f.name) > 1
        )
        yield spelled or "mesh.fsdp=1", dataclasses.replace(experiment, mesh=shape)


def sweep(
    candidates: Iterator[Changed], topology: str, kind: Kind, tell: Callable[[str], None] = print
) -> list[tuple[str, Estimate | str]]:
    """(its name, its estimate or why there is none) of each, those that fit first, the fastest of them first."""
    found: list[tuple[str, Estimate | str]] = []
    for name, experiment in candidates:
        tell(f"compiling {name}")
        try:
            found.append((name, plan(experiment, topology, kind)))
        except UserError as error:
            found.append((name, str(error)))
    known = lambda pair: isinstance(pair[1], Estimate) and pair[1].fits  # noqa: E731
    return sorted(found, key=lambda pair: (not known(pair), pair[1].seconds if known(pair) else 0.0))
