"""The model that an adapter is for: its family, its linear layers by their public names, its Specs."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxeff.core.spec import Spec
from jaxeff.core.tree import paths
from jaxeff.interop.hf.family import Family
from jaxeff.interop.hf.save import written
from jaxeff.interop.peft.modules import Module, modules
from jaxeff.models.lm import LM


@dataclasses.dataclass(frozen=True)
class Base:
    """modules: linear layers of blocks by name; outside: names of matrices that are not in blocks; specs: of plain weights."""

    model: LM
    family: Family
    modules: Mapping[str, Module]
    outside: tuple[str, ...]
    specs: Mapping[str, Spec]

    @classmethod
    def of(cls, model: LM, family: str | None) -> "Base":
        """That of a model. Raises UserError where no family, or not the named one, has such a model."""
        found = written(model, family)[0]
        inside, outside = modules(found, model)
        return cls(model, found, inside, tuple(outside), paths(model.specs()))

    def sizes(self, name: str) -> tuple[int, int]:
        """(inputs, outputs) of a linear layer."""
        specs = [self.specs[path] for path in self.modules[name].paths]
        return math.prod(specs[0].inputs), sum(math.prod(spec.outputs) for spec in specs)

    def n_in(self) -> dict[str, int]:
        """How many of a weight's axes are inputs, by path."""
        return {path: spec.n_in for path, spec in self.specs.items()}


def number(x: float) -> Any:
    """A whole number as one."""
    return int(x) if float(x).is_integer() else x
