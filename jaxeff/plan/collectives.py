"""Communication between chips: what is sent, along which axes of the mesh, and how long it takes by a plain model of the links.

The model, B bytes of the whole array on each chip, n chips, W bytes a second into a chip, summed over the dimensions of the grid
along which the n chips lie, two links a dimension where they close to a ring and one where they do not:

    all-gather, reduce-scatter   B (n - 1) / n / W        all-reduce          twice that
    all-to-all                   B s / (4 w)              collective-permute  B / link

s chips along the longest of these dimensions, w bytes a second along it, as half of what all have passes its middle; and HOP
seconds for each hop of the longest way. (The forms of "How to Scale Your Model", Austin et al. 2025.) What is computed between the
start of a communication and its end hides it; several at once share the links one after the other.

Between s slices hosts send what a chip hands to them, on a way of their own: 2 B (s - 1) / s / dcn for a sum, else half of that.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from jaxeff.core.sharding import islands
from jaxeff.plan.chips import Chip
from jaxeff.plan.hlo import Instruction, Module, Shape, shapes

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
HOP = 1e-6
SMALL = 1 << 16  # bytes; norms, sums of losses and the like need no word


@dataclasses.dataclass(frozen=True)
class Collective:
    """One communication. bytes: of the arrays that are whole afterwards or were before; numbers: how many each of them has.
    axes: of the mesh. n: chips of a group."""

    kind: str
    bytes: int
    numbers: tuple[int, ...]
    axes: tuple[str, ...]
    n: int
    seconds: float
    channel: str | None
    between_slices: bool = False


class Links:
    """The chips of a mesh and what lies between them."""

    def __init__(self, mesh: Mesh, chip: Chip):
        self.mesh, self.chip = mesh, chip
        devices = list(mesh.devices.flat)
        self.places = np.array([getattr(device, "coords", (i,)) for i, device in enumerate(devices)])
        self.sides = self.places.max(axis=0) - self.places.min(axis=0) + 1
        self.coordinates = np.stack(np.unravel_index(np.arange(len(devices)), mesh.devices.shape), axis=1)

    def read(self, module: Module, instruction: Instruction) -> Collective | None:
        """The communication that an instruction begins, does or takes part in; None for any other."""
        if instruction.opcode == "recv" and "xla_megascale_runtime" in instruction.rest:
            return self._between_slices(instruction)
        for inner in module.inside(instruction):
            kind = inner.opcode.removesuffix("-start")
            if kind in KINDS:
                return self._read(module, inner, kind, _scatters(instruction, inner))
        return None

    def _read(self, module: Module, i: Instruction, kind: str, scatters: bool) -> Collective:
        group = self._group(i)
        results = _results(i)
        parts = len(group) if kind == "reduce-scatter" else 1
        kind = "reduce-scatter" if scatters else kind
        size, numbers = parts * sum(s.bytes for s in results), tuple(parts * math.prod(s.dims) for s in results)
        return Collective(
            kind, size, numbers, self._axes(group), len(group), self._seconds(kind, size, group), i.channel
        )

    def _between_slices(self, i: Instruction) -> Collective:
        """What is received of other slices; the name of its rendezvous is that of the collective it once was."""
        name = re.search(r'rendezvous="([a-z-]+)', i.rest)
        kind = name[1] if name and name[1] in KINDS else "all-reduce"
        shape = next(shape for shape in shapes(i.type) if shape.dims)
        first = np.unique(islands(list(self.mesh.devices.flat)), return_index=True)[1].tolist()
        n = len(first)
        seconds = (2 if kind == "all-reduce" else 1) * shape.bytes * (n - 1) / n / self.chip.dcn
        return Collective(kind, shape.bytes, (math.prod(shape.dims),), self._axes(first), n, seconds, None, True)

    def _axes(self, group: Sequence[int]) -> tuple[str, ...]:
        varies = np.ptp(self.coordinates[list(group)], axis=0) > 0
        return tuple(name for name, here in zip(self.mesh.axis_names, varies, strict=True) if here)

    def _seconds(self, kind: str, size: int, group: Sequence[int]) -> float:
        places, n = self.places[list(group)], len(group)
        if n == 1 or size == 0:
            return 0.0
        spread = np.ptp(places, axis=0)
        width = max(1, sum(self._ways(d, spread) for d in np.flatnonzero(spread))) * self.chip.link
        hops = HOP * max(1, int(spread.sum()) // 2)
        if kind == "collective-permute":
            return size / self.chip.link + HOP
        if kind == "all-to-all":
            longest = int(np.argmax(spread))
            return size * int(spread[longest] + 1) / (4 * self._ways(longest, spread) * self.chip.link) + hops
        return size * (n - 1) / n * (2 if kind == "all-reduce" else 1) / width + hops

    def _ways(self, dimension: int, spread: np.ndarray) -> int:
        """Links of a chip along a dimension: two where the group takes all of it and it closes to a ring."""
        side, closed = int(self.sides[dimension]), self.chip.closed
        closes = side == closed or (self.chip.cubes and side % closed == 0)
        return 2 if closes and spread[dimension] + 1 == side else 1

    def _group(self, i: Instruction) -> tuple[int, ...]:
        """The first group of chips, by their numbers in the mesh."""
        pairs = i.attribute(r"source_target_pairs=\{(.*?\})\}")
        if pairs:
            return _ring([tuple(map(int, pair.split(","))) for pair in re.findall(r"(\d+,\d+)", pairs)])
        return next(_groups(i.rest, self.mesh.size))


def _scatters(whole: Instruction, inner: Instruction) -> bool:
    """Whether it is a sum of which each chip keeps its part: as such the compiler runs a sum fused with a slice of it."""
    size = lambda i: sum(shape.bytes for shape in shapes(i.type))  # noqa: E731
    return inner.opcode == "all-reduce" and whole.opcode == "fusion" and size(whole) < size(inner)


def _results(i: Instruction) -> list[Shape]:
    """The arrays that come out; the type of a start is (operands, results, ...)."""
    found = [shape for shape in shapes(i.type) if shape.dims or not i.opcode.endswith("-start")]
    return found[len(found) // 2 :] if i.opcode.endswith("-start") and len(found) > 1 else found


def _ring(pairs: list[tuple[int, int]]) -> tuple[int, ...]:
    """The chips that a permutation moves something between, from the first one on."""
    after, found = dict(pairs), [pairs[0][0]]
    while (following := after.get(found[-1])) is not None and following not in found:
        found.append(following)
    return tuple(found)


@functools.cache
def _listed(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", text))


def _groups(rest: str, n: int) -> Iterator[tuple[int, ...]]:
    """The groups of replica_groups, of which XLA has three spellings: lists, a permuted count, and axes of a mesh of its own."""
    listed = re.search(r"replica_groups=(\{\{[\d,{}]*\}\})", rest)
    if listed:
        yield from _listed(listed[1])
        return
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if counted:
        shape, dims = (tuple(map(int, text.split(","))) for text in counted.groups()[:2])
        ids = np.arange(math.prod(dims)).reshape(dims)
        ids = ids.transpose(tuple(map(int, counted[3].split(",")))) if counted[3] else ids
        yield from map(tuple, ids.reshape(shape).tolist())
        return
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*(?:device_ids=\S+\s*)?\{([^}]*)\}", rest)
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'?([\w.-]+)'?=(\d+)", named[1])}
        axes = re.findall(r"[\w.-]+", named[2])
        ids = np.moveaxis(np.arange(math.prod(sizes.values())).reshape(*sizes.values()), [*sizes].index(axes[0]), -1)
        if len(axes) > 1:
            order = [a for a in sizes if a not in axes] + axes
            ids = (
                np.arange(math.prod(sizes.values()))
                .reshape(*sizes.values())
                .transpose([[*sizes].index(a) for a in order])
            )
        yield from map(tuple, ids.reshape(-1, math.prod(sizes[a] for a in axes)).tolist())
        return
    yield tuple(range(n))
