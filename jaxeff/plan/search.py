"""Other ways to run the same experiment: what makes it fit, and which mesh or topology is best."""

import dataclasses
import math
from collections.abc import Callable, Iterator

from jaxeff.core.errors import UserError
from jaxeff.core.sharding import islands
from jaxeff.models.stack import REMAT
from jaxeff.plan.chips import devices_of
from jaxeff.plan.estimate import Estimate, plan
from jaxeff.plan.program import Kind
from jaxeff.train.experiment import Experiment, MeshShape

Changed = tuple[str, Experiment]


def changes(experiment: Experiment, chips: int) -> Iterator[Changed]:
    """(as `--set` spells it, the experiment so changed), from what costs least to what costs most: weights spread over all chips,
    then more of the forward pass computed twice, then a batch in more parts."""
    spread = _mesh(chips, experiment.mesh.dcn_data * experiment.mesh.dcn_fsdp)
    if experiment.mesh != spread and experiment.data.batch_size % chips == 0:
        yield _spelled(spread), dataclasses.replace(experiment, mesh=spread)
    order = tuple(REMAT)
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
    devices = devices_of(topology)
    slices = len(set(islands(devices)))
    chips = len(devices)
    sizes = [n for n in range(1, chips // slices + 1) if chips // slices % n == 0]
    shapes = dict.fromkeys(
        _mesh(chips, slices, **{axis: n})
        for axis in ("data", "tensor", "sequence")
        for n in sizes
        if n < sizes[-1] or axis == "data"
    )
    for shape in shapes:
        yield _spelled(shape), dataclasses.replace(experiment, mesh=shape)


def _mesh(chips: int, slices: int, **axis: int) -> MeshShape:
    """All chips, at most one axis beside `fsdp`; slices hold copies of the weights."""
    shape = MeshShape(fsdp=chips // slices // math.prod(axis.values()), **axis)
    return dataclasses.replace(shape, data=shape.data * slices, dcn_data=slices)


def _spelled(shape: MeshShape) -> str:
    """As `--set` wants it."""
    sizes = dataclasses.asdict(shape)
    return " ".join(f"mesh.{name}={size}" for name, size in sizes.items() if size > 1) or "mesh.fsdp=1"


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
