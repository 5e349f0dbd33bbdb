"""What a program costs on a TPU: whether it fits, how long it takes and what it waits for. `plan` gives it as one value.

B batch, T time.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from jaxeff.core.errors import UserError
from jaxeff.core.spec import count
from jaxeff.core.tree import paths
from jaxeff.plan.chips import chip_of, devices_of
from jaxeff.plan.collectives import SMALL, Links
from jaxeff.plan.hlo import Module, shapes
from jaxeff.plan.parts import line_of, part_of
from jaxeff.plan.program import Compiled, DoesNotFit, Kind, compile, program
from jaxeff.plan.timeline import Spent, Timeline
from jaxeff.train.experiment import Experiment

LARGEST = 12  # rows of a table of arrays, of instructions


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What is known of one program on one topology. Bytes are of one chip.

    fits: whether it does; of what does not, only `memory` {"needed"} and `hbm` are known. parts: seconds of an execution by part of
    the model. flops: of the model's matrix products, of all chips, nothing counted twice that is computed again. sent, works: rows
    of tables. unknown: kernels, by line, of which there is no estimate and whose time is missing.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    kind: Kind
    parameters: int
    tokens: int
    hbm: int
    fits: bool
    memory: dict[str, int]
    flops: float
    peak: float = 0.0
    parts: dict[str, float] = dataclasses.field(default_factory=dict)
    sent: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    works: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    arrays: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    unknown: dict[str, int] = dataclasses.field(default_factory=dict)
    compiled_in: float = 0.0
    bandwidth: float = 0.0

    @property
    def seconds(self) -> float:
        """Of one execution."""
        return sum(self.parts.values())

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: the share of the chips' peak that the model's own products are (Chowdhery et al. 2022)."""
        return self.flops / (self.seconds * self.chips * self.peak) if self.seconds else 0.0

    @property
    def used(self) -> int:
        """Bytes of a chip's memory."""
        return sum(self.memory.values())

    def json(self) -> dict[str, Any]:
        """Everything, with what follows from it."""
        derived = {"seconds": self.seconds, "mfu": self.mfu, "used": self.used, "tokens_per_s": self.tokens_per_s}
        return dataclasses.asdict(self) | derived

    @property
    def tokens_per_s(self) -> float:
        """Of all chips together."""
        return self.tokens / self.seconds if self.seconds else 0.0


def plan(experiment: Experiment, topology: str, kind: Kind = "train") -> Estimate:
    """The estimate of an experiment's program on a topology such as "v5e:4x4", compiled here for chips that are not here.

    Raises UserError for a topology that is none, for a mesh that does not take all its chips, and without the compiler's library.
    """
    chip, devices = chip_of(topology), devices_of(topology)
    mesh = experiment.mesh.make(devices)
    if mesh.size != len(devices):
        raise UserError(
            f"the mesh takes {mesh.size} of the {len(devices)} chips of {topology}; --set mesh.fsdp={len(devices)} takes all,"
            " and --sweep mesh tries every shape"
        )
    made = program(experiment, mesh, kind)
    known = dict(
        topology=topology, chips=len(devices), mesh=dict(mesh.shape), kind=kind, parameters=count(experiment.model.specs()),
        tokens=made.tokens, flops=made.flops, peak=chip.flops, bandwidth=chip.bandwidth,
    )  # fmt: skip
    try:
        compiled = compile(made)
    except DoesNotFit as found:
        return Estimate(hbm=found.there, fits=False, memory={"needed": found.used}, **known)
    return Estimate(
        hbm=chip.hbm, fits=True, memory=compiled.memory, **known, **read(compiled, mesh, topology, experiment)
    )


def read(compiled: Compiled, mesh: Mesh, topology: str, experiment: Experiment) -> dict[str, Any]:
    """What stands in the text of the compiled module: the fields of an Estimate from `parts` on."""
    module, chip = Module(compiled.text), chip_of(topology)
    spent = Timeline(module, Links(mesh, chip), chip).of()
    return {
        "parts": dict(spent.parts.most_common()),
        "sent": _sent(spent, _weights(experiment, mesh)),
        "works": _works(spent),
        "arrays": _arrays(module),
        "unknown": dict(spent.unknown),
        "compiled_in": compiled.seconds,
    }


def _weights(experiment: Experiment, mesh: Mesh) -> set[int]:
    """How many numbers each weight has, each layer's part of it, and what one axis of the mesh or several leave a chip of either:
    what data parallelism may well send."""
    specs = paths(experiment.specs).values()
    whole = {math.prod(shape) for spec in specs for shape in (spec.shape, spec.shape[spec.n_stacked :])}
    sizes = [size for size in mesh.shape.values() if size > 1]
    cuts = {math.prod(some) for n in range(len(sizes) + 1) for some in itertools.combinations(sizes, n)}
    return {n // cut for n in whole for cut in cuts if n % cut == 0}


def _sent(spent: Spent, weights: set[int]) -> list[dict[str, Any]]:
    """Communications of one kind from one line, together; the most time first."""
    rows: dict[tuple, Counter] = {}
    for s in spent.sent:
        c = s.collective
        row = rows.setdefault((c.kind, "+".join(c.axes), s.part, str(s.line or ""), c.bytes, c.numbers), Counter())
        row.update({"times": s.times, "seconds": s.times * c.seconds, "exposed": s.times * s.exposed})
    names = ("kind", "axes", "part", "line", "bytes", "numbers")
    found = [dict(zip(names, key, strict=True)) | dict(row) for key, row in rows.items()]
    for row in found:
        row["asked"] = _asked(row, weights)
    return sorted(found, key=lambda row: -row["seconds"])


def _asked(row: Mapping[str, Any], weights: set[int]) -> bool:
    """Whether a sharding rule asks for it: small ones; weights and their gradients over data and fsdp; over other axes all."""
    over = set(row["axes"].split("+"))
    if row["bytes"] < SMALL or not over & {"data", "fsdp"}:
        return True
    if row["part"] == "embedding" and row["kind"] == "all-to-all":
        return True  # rows of a table that is cut along its features become rows of the batch
    return row["kind"] in ("all-gather", "reduce-scatter", "all-reduce") and all(
        n in weights or n * 4 < SMALL for n in row["numbers"]
    )


def _works(spent: Spent) -> list[dict[str, Any]]:
    """Instructions from one line in one part and of one operation, together; the most time first."""
    rows: dict[tuple, Counter] = {}
    for w in spent.works:
        row = rows.setdefault((w.part, str(w.line or ""), w.operation.rpartition("/")[2]), Counter())
        row.update(
            {"times": w.times, "seconds": w.times * w.seconds, "flops": w.times * w.flops, "bytes": w.times * w.bytes}
        )
    names = ("part", "line", "operation")
    found = [dict(zip(names, key, strict=True)) | dict(row) for key, row in rows.items()]
    return sorted(found, key=lambda row: -row["seconds"])


def _arrays(module: Module) -> list[dict[str, Any]]:
    """The largest arrays in main memory that instructions make, one of each shape and line."""
    found: dict[tuple, int] = {}
    for instruction, _ in module.walk():
        if instruction.opcode in ("parameter", "get-tuple-element", "tuple", "bitcast"):
            continue
        stack = module.stack(instruction)
        for shape in shapes(instruction.type):
            if shape.space == 0:
                key = f"{shape.dtype}[{','.join(map(str, shape.dims))}]", part_of(stack), str(line_of(stack) or "")
                found[key] = shape.bytes
    rows = [{"array": array, "part": part, "line": line, "bytes": size} for (array, part, line), size in found.items()]
    return sorted(rows, key=lambda row: -row["bytes"])[:LARGEST]
