"""The cycles that the TPU compiler expects of a program, from the text of its optimised module.

Every instruction carries an estimate of its own; a loop's body counts as often as the loop turns, which stands in the constant that
its condition compares with.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

PRODUCTS = ("convolution", "dot")  # as which matrix products are compiled


class Cycles(NamedTuple):
    """matmul: of instructions that hold a matrix product, what is fused with it included. other: of all others."""

    matmul: float = 0.0
    other: float = 0.0

    def __add__(self, more: "Cycles") -> "Cycles":
        return Cycles(self.matmul + more.matmul, self.other + more.other)

    def times(self, n: int) -> "Cycles":
        """n turns of a loop."""
        return Cycles(n * self.matmul, n * self.other)

    @property
    def total(self) -> float:
        """All."""
        return self.matmul + self.other


def estimated(text: str) -> Cycles:
    """The cycles of a module. Raises ValueError where it has none, or a kernel, or a loop whose number of turns is not known."""
    computations = dict(_computations(text))
    entry = re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)
    found = {}

    def cost(name: str) -> Cycles:
        if name not in found:
            found[name] = sum((instruction(line) for line in computations[name]), Cycles())
        return found[name]

    def instruction(line: str) -> Cycles:
        body = re.search(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)", line)
        if body:
            return cost(body[2]).times(_turns(computations, body[1], line))
        branches = re.search(r" conditional\(.*branch_computations=\{([^}]*)\}", line)
        if branches:
            return max((cost(name.strip(" %")) for name in branches[1].split(",")), key=lambda c: c.total)
        called = re.search(r" call\(.*to_apply=%?([\w.-]+)", line)
        if called:
            return cost(called[1])
        own = re.search(r'"estimated_cycles":"(\d+)"', line)
        if not own and "tpu_custom_call" in line:
            raise ValueError("the module calls a kernel, of which the compiler has no estimate")
        if not own:
            return Cycles()
        cycles = float(own[1])
        return Cycles(matmul=cycles) if _multiplies(computations, line) else Cycles(other=cycles)

    if entry is None or (total := cost(entry[1])).total == 0:
        raise ValueError("the module has no estimates: it was not compiled for a TPU")
    return total


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = None, []
    for line in text.splitlines():
        opened = re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line)
        if opened and not line.startswith(" "):
            name, lines = opened[1], []
        elif line.startswith("}") and name is not None:
            yield name, lines
            name = None
        elif name is not None:
            lines.append(line)


def _multiplies(computations: dict[str, list[str]], line: str) -> bool:
    if any(f" {product}(" in line for product in PRODUCTS):
        return True
    called = re.search(r"calls=%?([\w.-]+)", line)
    return called is not None and any(_multiplies(computations, inner) for inner in computations.get(called[1], ()))


def _turns(computations: dict[str, list[str]], condition: str, line: str) -> int:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
    if known:
        return int(known[1])
    constants = [
        int(n) for inner in computations[condition] for n in re.findall(r"[su]32\[\]\S* constant\((\d+)\)", inner)
    ]
    if len(constants) != 1:
        raise ValueError(f"how often the loop with the condition {condition} turns is not known")
    return constants[0]
