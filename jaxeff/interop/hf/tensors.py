"""Which tensor of a file holds which of our weights, in what order of axes.

A row of a family's table says it in einops' words, from theirs to ours:

    Tensor("self_attn.q_proj.weight", {"mixer/q": "(h c) d -> d h c"})

Sizes follow from our Specs, so the same row reads and writes. Of several weights in one tensor, these lie one after the other
along `axis`: Tensor("qkv_proj.weight", {"mixer/q": "(h c) d -> d h c", "mixer/k": "(k c) d -> d k c", ...}).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from einops import rearrange

from jaxeff.core.spec import Spec
from jaxeff.core.tree import paths


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor by its name, and the weights in it, path -> pattern.

    axis: along which several weights follow each other, before `whole` brings them into the tensor's own shape ("g s d -> (g s) d"
    where heads have q, k and v side by side). sizes: of letters that our shapes do not tell.
    """

    name: str
    weights: Mapping[str, str]
    axis: int = 0
    whole: str | None = None
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """The tensor's own, from those of our weights."""
        parts = [self._part(path, shapes[path]) for path in self.weights]
        joined = list(parts[0])
        joined[self.axis] = sum(part[self.axis] for part in parts)
        if self.whole is None:
            return tuple(joined)
        given, wanted = sides(self.whole)
        return shaped(wanted, dict(zip(given, joined, strict=True)))

    def split(self, tensor: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, np.ndarray]]:
        """Our weights in a tensor of theirs, as views of it."""
        parts = {path: self._part(path, shapes[path]) for path in self.weights}
        if self.whole is not None:
            first = next(iter(parts.values()))
            given, wanted = sides(self.whole)
            known = {letter: n for i, (letter, n) in enumerate(zip(given, first, strict=True)) if i != self.axis}
            tensor = rearrange(tensor, f"{' '.join(wanted)} -> {' '.join(given)}", **known)
        ends = np.cumsum([part[self.axis] for part in parts.values()])[:-1]
        for (path, pattern), part in zip(self.weights.items(), np.split(tensor, ends, self.axis), strict=True):
            yield path, rearrange(part, pattern, **self._known(pattern, shapes[path]))

    def join(self, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        """Their tensor from our weights."""
        parts = []
        for path, pattern in self.weights.items():
            theirs, ours = pattern.split("->")
            sizes = self._known(pattern, weights[path].shape)
            parts.append(rearrange(weights[path], f"{ours} -> {theirs}", **sizes))
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts, self.axis)
        return np.ascontiguousarray(joined if self.whole is None else rearrange(joined, self.whole))

    def _part(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        pattern = self.weights[path]
        return shaped(sides(pattern)[0], self._known(pattern, shape))

    def _known(self, pattern: str, shape: tuple[int, ...]) -> dict[str, int]:
        """Letters of a pattern and their sizes."""
        theirs, ours = sides(pattern)
        known = {letter: n for letter, n in self.sizes.items() if letter in re.findall(r"\w+", pattern)}
        for entry, n in zip(ours, shape, strict=True):
            inner = entry.strip("()").split()
            left = [letter for letter in inner if letter not in known]
            done = math.prod(known.get(letter, 1) for letter in inner)
            known |= {left[0]: n // done} if left else {}
        return known


@functools.cache
def sides(pattern: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The axes on both sides of a pattern, a bracket being one."""
    return tuple(tuple(re.findall(r"\([^)]*\)|\w+", side)) for side in pattern.split("->"))  # type: ignore[return-value]


def shaped(axes: Sequence[str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The sizes of axes, of a bracket the product."""
    return tuple(math.prod(sizes.get(n, 1) for n in axis.strip("()").split()) for axis in axes)


@dataclasses.dataclass(frozen=True)
class Placed:
    """A Tensor of a whole model: the weights' paths are those of the model's parameters. layer: which entry of stacked weights,
    None for weights that are not stacked."""

    tensor: Tensor
    layer: int | None = None

    def shapes(self, specs: Mapping[str, Spec]) -> dict[str, tuple[int, ...]]:
        """Of the weights in it, by path; of stacked ones, those of one layer."""
        return {path: specs[path].shape[self.layer is not None :] for path in self.tensor.weights}

    def shape(self, specs: Mapping[str, Spec]) -> tuple[int, ...]:
        """Of their tensor."""
        return self.tensor.shape(self.shapes(specs))

    def split(self, tensor: np.ndarray, specs: Mapping[str, Spec]) -> Iterator[tuple[str, np.ndarray]]:
        """Our weights in their tensor, by path, as views."""
        return self.tensor.split(tensor, self.shapes(specs))

    def join(self, arrays: Mapping[str, Any]) -> np.ndarray:
        """Their tensor from our arrays."""
        index = () if self.layer is None else (self.layer,)
        return self.tensor.join({path: np.asarray(arrays[path][index]) for path in self.tensor.weights})


def placed(model, top: Sequence[Tensor], prefix: str, block: Callable[[Any], Sequence[Tensor]]) -> list[Placed]:
    """The tensors of a model. top: outside of layers; block(block): of one layer, whose names begin with `prefix`,
    "model.layers.{}." A row whose weights the model does not have is left out: a bias, a norm, an untied head.

    Raises LookupError for weights of the model that no row holds.
    """
    own = set(paths(model.specs()))
    found = [Placed(row) for row in top if set(row.weights) <= own]
    for place in model.stack:
        inside = set(paths(place.block.specs()))
        rows = [row for row in block(place.block) if set(row.weights) <= inside]
        for repeat in range(place.repeats):
            start = prefix.format(place.depth + place.step * repeat)
            for row in rows:
                weights = {f"blocks/{place.i}/{path}": pattern for path, pattern in row.weights.items()}
                found.append(Placed(dataclasses.replace(row, name=start + row.name, weights=weights), repeat))
    homeless = own - {path for each in found for path in each.tensor.weights}
    if homeless:
        raise LookupError(f"no tensor there holds {min(homeless)}")
    return found
