"""The text of an optimised XLA module, read: what it executes, how often, and from which line of Python each instruction comes.

The text holds everything that a planner needs. An instruction for a TPU carries the compiler's own estimate of its cycles; a loop's
number of turns stands in the constant that its condition compares with; tables of files, functions and lines say where in the
program that was traced an instruction has its origin.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}  # of types whose name does not end in their width
PRODUCTS = ("convolution", "dot")  # as which matrix products are compiled


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array. dims in logical order; layout: dimensions from the innermost; tile: of the innermost ones, the last first padded;
    space: 0 for the chip's main memory."""

    dtype: str
    dims: tuple[int, ...]
    layout: tuple[int, ...]
    tile: tuple[int, ...]
    space: int

    @property
    def bits(self) -> int:
        """Of one number."""
        if self.dtype in BITS:
            return BITS[self.dtype]
        digits = re.match(r"[a-z]+(\d+)", self.dtype)
        return int(digits[1])

    @property
    def bytes(self) -> int:
        """As it lies in memory, padded to whole tiles."""
        dims = [self.dims[i] for i in self.layout]
        for i, tile in enumerate(reversed(self.tile[-len(dims) :] if dims else ())):
            dims[i] = -(-dims[i] // tile) * tile
        return math.prod(dims) * self.bits // 8


SHAPE = re.compile(r"(?P<dtype>[a-z]+\d*[a-z\d]*)\[(?P<dims>[\d,<=]*)\](?:\{(?P<layout>[\d,]*)(?P<rest>:[^}]*)?\})?")


@functools.cache
def shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a type: one, or those of a tuple, nested ones too."""
    return tuple(_shape(match) for match in SHAPE.finditer(text))


def _shape(match: re.Match) -> Shape:
    numbers = lambda text: tuple(int(n.strip("<=")) for n in (text or "").split(",") if n)  # noqa: E731
    dims, layout, rest = numbers(match["dims"]), numbers(match["layout"]), match["rest"] or ""
    tile = re.search(r"T\(([\d,]+)\)", rest)
    space = re.search(r"S\((\d+)\)", rest)
    return Shape(
        match["dtype"],
        dims,
        layout or tuple(reversed(range(len(dims)))),
        numbers(tile[1]) if tile else (),
        int(space[1]) if space else 0,
    )


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation. type: of its result. operands: names. rest: its attributes, as text."""

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    rest: str

    def attribute(self, pattern: str) -> str | None:
        """What the first group of `pattern` finds among the attributes."""
        found = re.search(pattern, self.rest)
        return found and found[1]

    @property
    def cycles(self) -> float | None:
        """The compiler's estimate of one execution."""
        found = self.attribute(r'"estimated_cycles":"(\d+)"')
        return found and float(found)

    @property
    def called(self) -> str | None:
        """The computation that it fuses or calls."""
        return self.attribute(r"(?:calls|to_apply)=%?([\w.-]+)")

    @property
    def operation(self) -> str:
        """The path of transformations and primitives that JAX wrote: jit(step)/jvp()/while/body/dot_general."""
        return self.attribute(r'op_name="([^"]*)"') or ""

    @property
    def frame(self) -> int:
        """The number of its stack frame, 0 for none."""
        return int(self.attribute(r"stack_frame_id=(\d+)") or 0)

    @property
    def channel(self) -> str | None:
        """The number that the parts of one communication share."""
        return self.attribute(r"channel_id=(\d+)")


@dataclasses.dataclass(frozen=True)
class Place:
    """A line of Python."""

    file: str
    function: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Module:
    """computations: name -> instructions in order. entry: the name of the one that is run."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = dict(_computations(text))
        entry = re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)
        if entry is None:
            raise ValueError("this is no text of an XLA module")
        self.entry = entry[1]
        self.types = {i.name: i.type for body in self.computations.values() for i in body}
        self._frames = _frames(text)

    def stack(self, instruction: Instruction) -> list[Place]:
        """Where it comes from, the innermost call first; empty where the compiler made it of nothing in particular."""
        found, frame = [], instruction.frame
        while frame in self._frames:
            place, frame = self._frames[frame]
            found.append(place)
        return found

    def walk(self, name: str | None = None, times: int = 1) -> Iterator[tuple[Instruction, int]]:
        """(instruction, how often) of all that is executed, in order; loops, branches and calls are entered, fusions are not. Of
        branches the one with most cycles counts. Raises ValueError for a loop whose number of turns is not known."""
        for instruction in self.computations[name or self.entry]:
            body = instruction.attribute(r"body=%?([\w.-]+)")
            if instruction.opcode == "while":
                yield from self.walk(body, times * self.turns(instruction))
            elif instruction.opcode == "conditional":
                yield from self.walk(max(self.branches(instruction), key=self.cost), times)
            elif instruction.opcode == "call":
                yield from self.walk(instruction.called, times)
            else:
                yield instruction, times

    @functools.cache  # noqa: B019  as long as the module
    def cost(self, name: str) -> float:
        """The cycles of a computation."""
        return sum(times * (instruction.cycles or 0.0) for instruction, times in self.walk(name))

    def turns(self, loop: Instruction) -> int:
        """How often a loop turns."""
        known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"\}')
        if known:
            return int(known)
        condition = loop.attribute(r"condition=%?([\w.-]+)")
        constants = [
            int(i.operands[0])
            for i in self.computations[condition]
            if i.opcode == "constant" and re.match(r"[su]32\[\]", i.type)
        ]
        if len(constants) != 1:
            raise ValueError(f"how often the loop with the condition {condition} turns is not known")
        return -(-constants[0] // self._step(loop, condition))

    def _step(self, loop: Instruction, condition: str) -> int:
        """What a turn adds to the counter that the condition looks at; 1 where that is not to be seen."""
        looked_at = [
            i.attribute(r"index=(\d+)") for i in self.computations[condition] if i.opcode == "get-tuple-element"
        ]
        body = self.computations[loop.attribute(r"body=%?([\w.-]+)")]
        known, root = {i.name: i for i in body}, body[-1]
        if len(looked_at) != 1 or root.opcode != "tuple":
            return 1
        counted = known.get(root.operands[int(looked_at[0])])
        added = (
            [known[name] for name in counted.operands if name in known] if counted and counted.opcode == "add" else []
        )
        return max(1, next((int(i.operands[0]) for i in added if i.opcode == "constant"), 1))

    def inside(self, instruction: Instruction) -> Iterator[Instruction]:
        """It, and all that is fused into it."""
        yield instruction
        if instruction.opcode in ("fusion", "async-start"):
            for inner in self.computations.get(instruction.called, ()):
                yield from self.inside(inner)

    def multiplies(self, instruction: Instruction) -> bool:
        """Whether a matrix product is in it."""
        return any(inner.opcode in PRODUCTS for inner in self.inside(instruction))

    def flops(self, instruction: Instruction) -> float:
        """Of the matrix products in it."""
        return sum(self._product(inner) for inner in self.inside(instruction) if inner.opcode in PRODUCTS)

    def moved(self, instruction: Instruction) -> int:
        """Bytes between the chip and its main memory: what it reads and what it writes, each array once; of an array from which it
        takes slices, or into which it writes one, those."""
        if instruction.opcode in FREE:
            return 0
        inner = self.computations.get(instruction.called, ()) if instruction.opcode == "fusion" else (instruction,)
        total = self._written(inner or (instruction,), instruction)
        for n, name in enumerate(instruction.operands):
            if _in_memory(self.types.get(name, "")):
                total += self._read(inner, n) if instruction.opcode == "fusion" else self._taken(instruction, name)
        return total

    def _written(self, inner, instruction: Instruction) -> int:
        """Bytes that come out; of an array into which a slice is written, the slice."""
        known = {i.name: i for i in inner}
        root, results = inner[-1], shapes(instruction.type)
        ends = [known.get(name) for name in root.operands] if root.opcode == "tuple" else [root]
        if len(ends) != len(results):
            return _in_memory(instruction.type)
        total = 0
        for end, result in zip(ends, results, strict=True):
            while end is not None and end.opcode == "bitcast":
                end = known.get(end.operands[0])
            slice_only = end is not None and end.opcode == "dynamic-update-slice"
            size = (
                sum(shape.bytes for shape in shapes(self.types.get(end.operands[1], "")))
                if slice_only
                else result.bytes
            )
            total += size if result.space == 0 else 0
        return total

    def _read(self, inner, n: int) -> int:
        """Bytes that a fusion reads of its n-th operand: of what is only cut, in fusions within too, the cuts."""
        own = next((i for i in inner if i.opcode == "parameter" and i.operands == (str(n),)), None)
        users = [] if own is None else [i for i in inner if own.name in i.operands]
        if not users:
            return 0
        found = 0
        for user in users:
            if user.opcode == "fusion":
                within = self.computations[user.called]
                found += sum(self._read(within, k) for k, name in enumerate(user.operands) if name == own.name)
            else:
                found += self._taken(user, own.name)
        return min(found, _in_memory(own.type)) if _in_memory(own.type) else 0

    def _taken(self, user: Instruction, name: str) -> int:
        """Bytes that one instruction reads of an operand."""
        first = user.operands[0] == name
        if user.opcode == "dynamic-update-slice" and first:
            return 0
        return _in_memory(self.types.get(name, ""), user.type if user.opcode in TAKES and first else None)

    def branches(self, instruction: Instruction) -> list[str]:
        """The computations of which a conditional executes one."""
        listed = instruction.attribute(r"branch_computations=\{([^}]*)\}")
        if listed:
            return [name.strip(" %") for name in listed.split(",")]
        return [instruction.attribute(rf"{which}_computation=%?([\w.-]+)") for which in ("true", "false")]

    def _product(self, instruction: Instruction) -> float:
        out = shapes(instruction.type)[0].dims
        left, right = (shapes(self.types.get(name, ""))[0].dims for name in instruction.operands[:2])
        if instruction.opcode == "dot":
            contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
            return 2.0 * math.prod(out) * math.prod(left[int(i)] for i in contracted.split(",") if i)
        return _convolution(instruction, left, right, out)


TAKES = ("dynamic-slice", "slice", "gather", "dynamic-update-slice")  # what touches a part of its first operand
KERNELS = ("tpu_custom_call",)  # calls of which the compiler has no estimate
# What moves nothing: names for what is there, and ends of what was begun.
FREE = (
    "parameter",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "constant",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
)


def is_kernel(instruction: Instruction) -> bool:
    """Whether it is a kernel, without an estimate of its cycles."""
    return instruction.cycles is None and instruction.attribute(r'custom_call_target="([^"]*)"') in KERNELS


def _in_memory(type: str, instead: str | None = None) -> int:
    """Bytes of the arrays of a type that lie in main memory; instead: of as many numbers as another type has."""
    held = [shape for shape in shapes(type) if shape.space == 0]
    if instead is None or not held:
        return sum(shape.bytes for shape in held)
    return min(sum(shape.bytes for shape in held), sum(shape.bytes for shape in shapes(instead)))


def _convolution(instruction: Instruction, left, right, out) -> float:
    """2 x batch x input features x output features x pairs of a kernel's and an input's position, by dimension: those where neither
    padding nor the holes of dilation are met. So a batched product, compiled as a dilated convolution, counts as what it is.
    """
    labels = re.match(r"(\w+)_(\w+)->(\w+)", instruction.attribute(r"dim_labels=(\S+?->\w+)"))
    lhs, rhs, result = labels.groups()
    fields = dict(re.findall(r"(\w+)=([^\s}]+)", instruction.attribute(r"window=\{([^}]*)\}") or ""))
    pairs = 1
    for place, label in enumerate(sorted(set(result) - set("bf"))):
        part = lambda name, default, place=place: fields.get(name, "").split("x")[place] if name in fields else default  # noqa: E731
        low = int(part("pad", "0_0").split("_")[0])
        pairs *= _pairs(
            out[result.index(label)], int(part("size", "1")), left[lhs.index(label)], int(part("stride", "1")), low,
            int(part("lhs_dilate", "1")), int(part("rhs_dilate", "1")),
        )  # fmt: skip
    groups = int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
    return 2.0 * out[result.index("b")] * right[rhs.index("i")] * out[result.index("f")] * pairs / groups


@functools.cache
def _pairs(out: int, size: int, length: int, stride: int, low: int, dilate: int, kernel_dilate: int) -> int:
    places = (o * stride + k * kernel_dilate - low for o in range(out) for k in range(size))
    return sum(1 for at in places if 0 <= at <= (length - 1) * dilate and at % dilate == 0)


LINE = re.compile(r"\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<type>\(.*?\)\s|\S+\s)(?P<opcode>[a-z][\w-]*)\(")


def _computations(text: str) -> Iterator[tuple[str, list[Instruction]]]:
    name, body = None, []
    for line in text.splitlines():
        opened = not line.startswith(" ") and re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line)
        if opened:
            name, body = opened[1], []
        elif line.rstrip() == "}" and name is not None:
            yield name, body
            name = None
        elif name is not None and not (found := LINE.match(line)) and body:
            body[-1] = dataclasses.replace(
                body[-1], rest=body[-1].rest + line
            )  # a kernel's attributes take several lines
        elif name is not None and found:
            inner, rest = _until_closed(line[found.end() :])
            operands = (inner,) if found["opcode"] in ("constant", "parameter") else re.findall(r"%([\w.-]+)", inner)
            body.append(Instruction(found["name"], found["opcode"], found["type"].strip(), tuple(operands), rest))


def _until_closed(text: str) -> tuple[str, str]:
    """(what stands before the bracket that closes, what stands after it)."""
    depth = 1
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[:i], text[i + 1 :]
    return text, ""


def _frames(text: str) -> dict[int, tuple[Place, int]]:
    """number -> (place, number of the calling frame), from the tables before the computations."""

    def table(name: str) -> dict[int, str]:
        found = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        return {
            int(n): rest for n, _, rest in (line.partition(" ") for line in (found[1] if found else "").splitlines())
        }

    def fields(row: str) -> dict[str, int]:
        return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", row)}

    files, functions = table("FileNames"), table("FunctionNames")
    places = {}
    for n, row in table("FileLocations").items():
        f = fields(row)
        file, function = (
            names.get(f[key], "").strip('"')
            for names, key in ((files, "file_name_id"), (functions, "function_name_id"))
        )
        places[n] = Place(file, function, f.get("line", 0))
    frames = {}
    for n, row in table("StackFrames").items():
        f = fields(row)
        if f.get("file_location_id") in places:
            frames[n] = (
                places[f["file_location_id"]],
                f.get("parent_frame_id", 1) - 1,
            )  # counted from 1, which is none
    return frames
