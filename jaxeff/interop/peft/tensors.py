"""Which tensors of an adapter hold which arrays of our nodes: derived from the Tensor of the weight that the adapter stands beside.

Of a weight [outputs, inputs] A is [rank, inputs] and B [outputs, rank]. Where their weight is several of ours, one after the other
along the outputs, B is cut as the weight is, and A belongs to each of ours as it is.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxeff.core.errors import UserError
from jaxeff.core.spec import Spec
from jaxeff.interop.hf.tensors import Placed, Tensor, sides
from jaxeff.interop.peft.modules import Module
from jaxeff.transforms.adalora import AdaLoRAWeight
from jaxeff.transforms.dora import DoRAWeight
from jaxeff.transforms.ia3 import IA3Weight
from jaxeff.transforms.lora import LoRAWeight
from jaxeff.transforms.vera import VeRAWeight

PREFIX = "base_model.model."
# (end of their name, our field, their axes, our axes)
Row = tuple[str, str, str, str]
LORA: tuple[Row, ...] = (
    ("lora_A.weight", "a", "rank in", "in rank"),
    ("lora_B.weight", "b", "out rank", "rank out"),
)
TABLES: dict[type, tuple[Row, ...]] = {
    LoRAWeight: LORA,
    DoRAWeight: (
        *((end, f"lora/{field}", theirs, ours) for end, field, theirs, ours in LORA),
        ("lora_magnitude_vector", "magnitude", "out", "out"),
    ),
    AdaLoRAWeight: (
        ("lora_A", "p", "rank in", "in rank"),
        ("lora_E", "values", "rank 1", "rank"),
        ("lora_B", "q", "out rank", "rank out"),
    ),
    # The factors are cut to the weight's size first, see `methods.VERA`.
    VeRAWeight: (
        ("vera_A", "a", "rank in", "in rank"),
        ("vera_B", "b", "out rank", "rank out"),
        ("vera_lambda_d", "inner", "rank", "rank"),
        ("vera_lambda_b", "outer", "out", "out"),
    ),
}
SCALES: dict[str, Row] = {"out": ("ia3_l", "scale", "out 1", "out"), "in": ("ia3_l", "scale", "1 in", "in")}


def table(node: Any) -> tuple[Row, ...]:
    """The rows of a node of ours."""
    return (SCALES[node.side],) if isinstance(node, IA3Weight) else TABLES[type(node)]


@dataclasses.dataclass(frozen=True)
class Part:
    """A tensor of an adapter by its name; each of `rows` holds all of it."""

    name: str
    rows: tuple[Placed, ...]

    def shape(self, specs: Mapping[str, Spec]) -> tuple[int, ...]:
        """Of their tensor."""
        return self.rows[0].shape(specs)

    def split(self, tensor: np.ndarray, specs: Mapping[str, Spec]) -> Iterator[tuple[str, int, np.ndarray]]:
        """(path, entry of the stack, array) of ours in it."""
        for row in self.rows:
            for path, array in row.split(tensor, specs):
                yield path, row.layer, array

    def join(self, arrays: Mapping[str, Any]) -> np.ndarray:
        """Their tensor. Raises UserError where it is one and ours are several, which differ."""
        found = [row.join(arrays) for row in self.rows]
        for row, other in zip(self.rows, found):
            if not np.array_equal(found[0], other):
                first, second = (next(iter(each.tensor.weights)) for each in (self.rows[0], row))
                raise UserError(
                    f"{first} and {second} differ, and are one tensor in PEFT, {self.name}: make them equal"
                )
        return found[0]


def parts(modules: Iterable[Module], nodes: Mapping[str, Any], n_in: Mapping[str, int]) -> dict[str, list[Part]]:
    """name of a module -> tensors of its adapter. nodes: of Specs, by path; n_in: how many inputs a weight has.

    Raises LookupError for weights that follow each other along the inputs.
    """
    return {module.name: [part(module, row, n_in) for row in table(nodes[module.paths[0]])] for module in modules}


def part(module: Module, row: Row, n_in: Mapping[str, int]) -> Part:
    """The tensor of one row, beside the weight of a module. Raises LookupError as `parts` does."""
    end, field, theirs, ours = row
    tensor, name = module.weight.tensor, f"{PREFIX}{module.name}.{end}"
    cuts = {path: Cut.of(tensor, path, n_in[path]) for path in tensor.weights}
    patterns = {f"{path}/{field}": f"{cut.theirs(theirs)} -> {cut.ours(ours)}" for path, cut in cuts.items()}
    if "out" not in theirs.split():
        tensors = [Tensor(name, {path: pattern}, sizes=tensor.sizes) for path, pattern in patterns.items()]
    else:
        first = next(iter(cuts.values()))
        if first.axis is None and len(cuts) > 1:
            raise LookupError(f"{tensor.name} holds several weights along its inputs")
        tensors = [Tensor(name, patterns, first.axis or 0, first.whole(tensor.whole, theirs), tensor.sizes)]
    return Part(name, tuple(Placed(each, module.weight.layer) for each in tensors))


@dataclasses.dataclass(frozen=True)
class Cut:
    """The axes of a weight, told apart: inputs and outputs of theirs and of ours; axis: of their outputs, along which several
    weights follow each other, None where that is one of the inputs; inputs: where these stand among all of theirs."""

    their_in: str
    their_out: str
    our_in: str
    our_out: str
    axis: int | None
    inputs: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, path: str, n_in: int) -> "Cut":
        """That of one weight in a tensor."""
        theirs, ours = sides(tensor.weights[path])
        letters = set(" ".join(ours[:n_in]).replace("(", "").replace(")", "").split())
        inputs = tuple(i for i, axis in enumerate(theirs) if set(axis.strip("()").split()) <= letters)
        outputs = [i for i in range(len(theirs)) if i not in inputs]
        return cls(
            " ".join(theirs[i] for i in inputs),
            " ".join(theirs[i] for i in outputs),
            " ".join(ours[:n_in]),
            " ".join(ours[n_in:]),
            outputs.index(tensor.axis) if tensor.axis in outputs else None,
            inputs,
        )

    def theirs(self, axes: str) -> str:
        """Their axes of a tensor of the adapter."""
        return _filled(axes, self.their_in, self.their_out)

    def ours(self, axes: str) -> str:
        """Ours."""
        return _filled(axes, self.our_in, self.our_out)

    def whole(self, pattern: str | None, axes: str) -> str | None:
        """`Tensor.whole` of a tensor of the adapter, from the weight's."""
        if pattern is None:
            return None
        before, after = sides(pattern)
        letters = [before[i] for i in self.inputs]
        rest = (" ".join(axis for axis in side if axis not in letters) for side in (before, after))
        return " -> ".join(_filled(axes, "", side) for side in rest)


def _filled(axes: str, inputs: str, outputs: str) -> str:
    return " ".join({"in": inputs, "out": outputs}.get(axis, axis) for axis in axes.split())


def arrays(
    parts: Iterable[Part], tensors: Mapping[str, np.ndarray], specs: Mapping[str, Spec]
) -> dict[str, np.ndarray]:
    """Our arrays by path, of the tensors of an adapter."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for part in parts:
        for path, layer, array in part.split(tensors[part.name], specs):
            found.setdefault(path, {})[layer] = array
    return {path: np.stack([layers[i] for i in sorted(layers)]) for path, layers in found.items()}
