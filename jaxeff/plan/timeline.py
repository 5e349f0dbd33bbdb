"""How long a compiled step takes, instruction by instruction, in the order in which the compiler has put them.

An instruction takes the compiler's cycles at the chip's clock. A transfer that runs beside, to other chips or from main memory,
begins when its start is reached and when the transfers before it on the same way are done; whoever ends it waits until it is there.
A loop takes its turns times one turn. Of a kernel the compiler knows nothing: see `REACHED`.
"""

import dataclasses
import re
from collections import Counter

from jaxeff.plan.chips import Chip
from jaxeff.plan.collectives import Collective, Links
from jaxeff.plan.hlo import Instruction, Module, Place, is_kernel, shapes
from jaxeff.plan.parts import COPIES, WAITING, line_of, part_of

LINKS, MEMORY, NETWORK = "links", "memory", "network"
# A kernel of which nothing but its FLOPs is known: the share of the peak that it is assumed to reach on products padded to the
# width of the matrix unit, and the FLOPs of its backward parts, by name, over those of the forward pass.
REACHED = 0.5
BACKWARD = {"dkv": 2.0, "dq": 1.5}


@dataclasses.dataclass(frozen=True)
class Work:
    """An instruction that is executed `times` times, `seconds` each. flops: of its matrix products. bytes: what it reads from and
    writes to main memory, at most; both of one execution."""

    name: str
    part: str
    line: Place | None
    operation: str
    times: int
    seconds: float
    flops: float
    bytes: int


@dataclasses.dataclass(frozen=True)
class Sent:
    """A communication that takes place `times` times; exposed: seconds that the chip waits for one of them."""

    collective: Collective
    part: str
    line: Place | None
    times: int
    exposed: float


@dataclasses.dataclass
class Spent:
    """parts: seconds by part. works, sent: what they are made of. unknown: kernels of which there is no estimate."""

    parts: Counter = dataclasses.field(default_factory=Counter)
    works: list[Work] = dataclasses.field(default_factory=list)
    sent: list[Sent] = dataclasses.field(default_factory=list)
    unknown: Counter = dataclasses.field(default_factory=Counter)

    @property
    def seconds(self) -> float:
        """Of all."""
        return sum(self.parts.values())

    def add(self, other: "Spent", times: int):
        """`times` turns of something within."""
        self.parts.update({part: times * seconds for part, seconds in other.parts.items()})
        self.works += [dataclasses.replace(work, times=work.times * times) for work in other.works]
        self.sent += [dataclasses.replace(sent, times=sent.times * times) for sent in other.sent]
        self.unknown.update({name: times * n for name, n in other.unknown.items()})


class Timeline:
    """The time of a module's computations on a chip with these links."""

    def __init__(self, module: Module, links: Links, chip: Chip):
        self.module, self.links, self.chip = module, links, chip
        self._known: dict[str, Spent] = {}

    def of(self, name: str | None = None) -> Spent:
        """One execution of a computation, by default of all."""
        name = name or self.module.entry
        if name not in self._known:
            self._known[name] = _Run(self).run(name)
        return self._known[name]


class _Run:
    """One pass over a computation: the clock, and the transfers under way."""

    def __init__(self, timeline: Timeline):
        self.t, self.module, self.chip = timeline, timeline.module, timeline.chip
        self.spent, self.clock = Spent(), 0.0
        self.free = {LINKS: 0.0, MEMORY: 0.0, NETWORK: 0.0}  # from when on each way is free
        self.under_way: dict[str, tuple[float, str, Collective | None, Instruction]] = {}

    def run(self, name: str) -> Spent:
        for instruction in self.module.computations[name]:
            self.one(instruction)
        for key in list(self.under_way):
            self.end(key)
        return self.spent

    def one(self, i: Instruction):
        if i.opcode == "while":
            self.within(self.t.of(i.attribute(r"body=%?([\w.-]+)")), self.module.turns(i))
        elif i.opcode == "conditional":
            self.within(max((self.t.of(name) for name in self.module.branches(i)), key=lambda spent: spent.seconds), 1)
        elif i.opcode == "call":
            self.within(self.t.of(i.called), 1)
        elif i.opcode.endswith("-done"):
            self.end(i.operands[0])
        elif (collective := self.t.links.read(self.module, i)) is not None:
            self.communicate(i, collective)
        elif i.opcode in ("copy-start", "slice-start"):
            self.begin(i.name, MEMORY, _copied(i) / self.chip.bandwidth, None, i)
        else:
            self.compute(i)

    def within(self, spent: Spent, times: int):
        self.spent.add(spent, times)
        self.clock += times * spent.seconds

    def compute(self, i: Instruction):
        stack = self.module.stack(i)
        flops, moved = self.module.flops(i), self.module.moved(i)
        if is_kernel(i):
            told = self.kernel(i, moved)
            if told is None:
                self.spent.unknown[str(line_of(stack) or i.name)] += 1
            flops, seconds = told or (0.0, 0.0)
        elif i.cycles is None:
            return
        else:
            seconds = i.cycles / self.chip.clock
        part = part_of(stack)
        self.clock += seconds
        self.spent.parts[part] += seconds
        work = Work(i.name, part, line_of(stack), i.operation, 1, seconds, flops, moved)
        self.spent.works.append(work)

    def kernel(self, i: Instruction, moved: int) -> tuple[float, float] | None:
        """(FLOPs, seconds) of a kernel that tells what it multiplies, see `core.target.kernel_scope`; None of any other."""
        told = re.findall(r"kernel_flops_(\d+)_width_(\d+)(?:_cycles_(\d+))?", i.operation)
        if not told:
            return None
        flops, width, cycles = (int(number or 0) for number in told[-1])
        flops *= next((times for name, times in BACKWARD.items() if name in i.name), 1.0)
        padded = -(-width // self.chip.unit) * self.chip.unit / width
        products = flops * padded / (REACHED * self.chip.flops)
        return flops, max(products, cycles / self.chip.clock, moved / self.chip.bandwidth)

    def communicate(self, i: Instruction, collective: Collective):
        """A fused communication works while it sends: it begins with the fusion that starts it and ends with the one that says so;
        fusions between, also those of loops within, only take it along."""
        key = collective.channel or i.name
        if i.opcode.endswith("-start") or collective.between_slices:
            way = NETWORK if collective.between_slices else LINKS
            self.begin(i.name, way, collective.seconds, collective, i)
            return
        inner = list(self.module.inside(i))
        targets = {one.attribute(r'custom_call_target="(\w+)"') for one in inner}
        chained = any("async_collective_fusion_config" in one.rest for one in inner)
        if not chained or "AsyncCollectiveStart" in targets:
            self.begin(key, LINKS, collective.seconds, collective, i)
        if i.opcode == "fusion":
            self.compute(i)
        if not chained or "AsyncCollectiveDone" in targets:
            self.end(key)

    def begin(self, key: str, way: str, seconds: float, collective: Collective | None, i: Instruction):
        self.free[way] = max(self.clock, self.free[way]) + seconds
        self.under_way[key] = self.free[way], way, collective, i

    def end(self, key: str):
        if key not in self.under_way:
            return
        ready, way, collective, i = self.under_way.pop(key)
        waited = max(0.0, ready - self.clock)
        self.clock += waited
        self.spent.parts[COPIES if way == MEMORY else WAITING] += waited
        if collective is not None:
            stack = self.module.stack(i)
            self.spent.sent.append(Sent(collective, part_of(stack), line_of(stack), 1, waited))


def _copied(i: Instruction) -> int:
    """Bytes that a copy, or a slice taken, moves through main memory: twice what it copies where both ends lie there."""
    ends = [shape for shape in shapes(i.type) if shape.dims]
    return min(shape.bytes for shape in ends) * (2 if all(shape.space == 0 for shape in ends) else 1)
