"""A model as a tree of parts: what its weights are called, how they are shaped, which of them train. No weight is made.

outline(experiment.weights)     the tree; each part knows its numbers of parameters
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxeff.core.spec import LAYER, Spec
from jaxeff.core.tree import paths
from jaxeff.models.stack import Place
from jaxeff.train.weights import Weights
from jaxeff.transforms.node import Node
from jaxeff.transforms.plan import weights as weights_of

# What a model and a block hold, as the forward pass meets it.
ORDER = ("embed", "positions", "embed_norm", "start", "blocks", "tied", "norm", "mixer_norm", "mixer", "mixer_post_norm",
         "mlp_norm", "mlp", "mlp_post_norm", "head", "head_bias")  # fmt: skip
HOLDERS = re.compile(r"|(blocks|tied)/[^/]+")  # their paths
RUNS = 6  # of layers, listed by name


@dataclasses.dataclass(frozen=True)
class Part:
    """A parameter, or the parts below a path.

    kind: the class of a mixer or of a transformed weight. note: what else is to be said. copies: how many layers are like this one;
    the parts below are those of one layer. spec: of a parameter, of one layer where layers are stacked. trains: whether it does.
    """

    name: str
    kind: str = ""
    note: str = ""
    copies: int = 1
    spec: Spec | None = None
    trains: bool = True
    parts: tuple["Part", ...] = ()

    @property
    def count(self) -> int:
        """Parameters of all its copies."""
        return self.copies * self.one

    @property
    def one(self) -> int:
        """Parameters of one copy."""
        return self.spec.size if self.spec is not None else sum(part.count for part in self.parts)

    @property
    def trained(self) -> int:
        """Those of `count` that train."""
        inside = sum(part.trained for part in self.parts)
        return self.copies * (inside if self.spec is None else self.spec.size * self.trains)


def outline(weights: Weights) -> Part:
    """The tree of a run's weights, transforms applied; equal layers that follow each other are one part with `copies`.

    Raises UserError for rules of transforms that match nothing.
    """
    model = weights.model
    note = f"{_number(model.n_layers, 'layer')}, width {model.d_model:,}, vocabulary {model.vocab_size:,}"
    whole = _Outline(weights).part("", _nested(weights.specs), model.specs())
    return dataclasses.replace(whole, name=type(model).__name__, note=note)


class _Outline:
    """What the parts of one model are made from."""

    def __init__(self, weights: Weights):
        self.weights, self.places = weights, tuple(weights.model.stack)
        self.kinds = dict(_kinds(weights))

    def part(self, path: str, tree: Any, declared: Any = None) -> Part:
        """What lies at a path. declared: the same as its layer declares it, whose order is kept; JAX sorts the names."""
        name = path.rpartition("/")[2]
        if isinstance(tree, Spec):
            return Part(name, spec=_unstacked(tree, path), trains=self.weights.trains(path))
        if path == "blocks":
            parts = self.blocks(tree)
        elif path == "tied":
            parts = self.tied(tree)
        else:
            above = f"{path}/" if path else ""
            known = declared if isinstance(declared, Mapping) else {}
            order = (*(ORDER if HOLDERS.fullmatch(path) else ()), *known)
            parts = (self.part(above + key, tree[key], known.get(key)) for key in _ordered(tree, order))
        return Part(name, self.kinds.get(path, ""), parts=tuple(parts))

    def blocks(self, tree: dict[str, Any]) -> Iterator[Part]:
        """One part for each run of equal blocks."""
        own = [place for place in self.places if place.tied is None]
        made = {place: self.part(f"blocks/{place.i}", tree[str(place.i)], place.block.specs()) for place in own}

        def alike(place: Place):
            return place.block, place in made and _shapes(made[place])

        for _, run in itertools.groupby(self.places, alike):
            group = tuple(run)
            if group[0] in made:
                first, last = group[0].i, group[-1].i
                name = str(first) if first == last else f"{first}-{last}"
                copies = sum(place.repeats for place in group)
                yield dataclasses.replace(made[group[0]], name=name, copies=copies, note=_layers(group))

    def tied(self, tree: dict[str, Any]) -> Iterator[Part]:
        """One part for each block that stands at several depths."""
        for name, inside in tree.items():
            places = [place for place in self.places if place.tied == name]
            part = self.part(f"tied/{name}", inside, places[0].block.specs())
            yield dataclasses.replace(part, note=f"one block for {_layers(places)}")


def _kinds(weights: Weights) -> Iterator[tuple[str, str]]:
    """(path, class) of mixers and of the weights that transforms made."""
    for place in weights.model.stack:
        above = f"blocks/{place.i}" if place.tied is None else f"tied/{place.tied}"
        for name, part in place.block.parts.items():
            yield f"{above}/{name}", type(part).__name__
    for path, weight in weights_of(weights.specs).items():
        yield from _makers(path, weight)


def _makers(path: str, weight: Any) -> Iterator[tuple[str, str]]:
    """(path, class) of a node and of the nodes in it."""
    if isinstance(weight, Node):
        yield path, weight.maker()
        for name in weight.parts:
            yield from _makers(f"{path}/{name}", getattr(weight, name))


def _nested(specs) -> dict[str, Any]:
    """The Specs as dicts of dicts, by the names in their paths."""
    tree: dict[str, Any] = {}
    for path, spec in paths(specs).items():
        *above, name = path.split("/")
        here = tree
        for key in above:
            here = here.setdefault(key, {})
        here[name] = spec
    return tree


def _ordered(names: Iterable[str], order: Sequence[str]) -> list[str]:
    """The names, those that `order` lacks last."""
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _unstacked(spec: Spec, path: str) -> Spec:
    """The Spec of one layer."""
    if not path.startswith("blocks/") or spec.axes[:1] != (LAYER,):
        return spec
    return dataclasses.replace(spec, shape=spec.shape[1:], axes=spec.axes[1:], n_stacked=spec.n_stacked - 1)


def _shapes(part: Part) -> tuple:
    """What makes two blocks look alike: everything but their names and initial values."""
    spec = part.spec and (part.spec.shape, part.spec.axes, part.spec.dtype, part.trains)
    return part.kind, spec, tuple((inner.name, _shapes(inner)) for inner in part.parts)


def _layers(places: Iterable[Place]) -> str:
    """The depths at which blocks stand: "layers 0-3, 5"."""
    depths = sorted(place.depth + place.step * repeat for place in places for repeat in range(place.repeats))
    runs = [[n for _, n in run] for _, run in itertools.groupby(enumerate(depths), lambda pair: pair[1] - pair[0])]
    shown = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    if len(shown) > RUNS:
        shown = [*shown[: RUNS - 2], "...", shown[-1]]
    return f"{'layer' if len(depths) == 1 else 'layers'} {', '.join(shown)}"


def _number(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"
