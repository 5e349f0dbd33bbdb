"""Models of equal size: a named integer field of the model makes up for what a variant saves or spends elsewhere.

Counts come from the tree of Specs, so nothing is allocated.
"""

import re
from collections.abc import Callable
from typing import Any

from jaxeff.core.errors import UserError, nearest
from jaxeff.core.spec import count
from jaxeff.mixers.base import bind
from jaxeff.train.experiment import Experiment
from jaxeff.train.overrides import paths, replaced

TOLERANCE = 0.01
VARY = "model.stages.*mlp.d_hidden"
# The widest of these steps whose nearest width is within the tolerance: multiples of 8 fill vector units and tiles.
STEPS = (8, 4, 2, 1)


def solve(
    size: Callable[[int], int], target: int, tolerance: float = TOLERANCE, name: str = "the model", field: str = "n"
) -> int:
    """The n >= 1 for which the growing `size(n)` is nearest to `target`, at multiples of 8 where these are near enough.

    A multiple for which `size` raises ValueError is passed over. Raises UserError when no n comes within `tolerance`.
    """
    best = None
    for step in STEPS:
        found = _nearest(size, target, step)
        if found is not None and abs(found[1] / target - 1) <= tolerance:
            return found[0]
        if found is not None and (best is None or abs(found[1] - target) < abs(best[1] - target)):
            best = found
    if best is None:
        raise UserError(f"{name}: no value of {field} gives a possible model")
    if size(best[0] + 8 * 1024) == best[1]:
        raise UserError(f"{name}: {field} does not change the number of parameters, so nothing can be matched")
    n, found = best
    raise UserError(
        f"{name}: no {field} gives {target:,} parameters within {tolerance:.1%}: {field}={n} gives {found:,} "
        f"({found / target - 1:+.1%})"
    )


def _nearest(size: Callable[[int], int], target: int, step: int) -> tuple[int, int] | None:
    """(n, size) for the multiple n of `step` whose size is nearest to the target; None where such multiples are impossible."""
    try:
        low = high = step
        while size(high) < target and high < 2**24:
            low, high = high, 2 * high
        while high - low > step:
            middle = (low + high) // 2 // step * step
            low, high = (middle, high) if size(middle) < target else (low, middle)
        return min(((n, size(n)) for n in (low, high)), key=lambda found: abs(found[1] - target))
    except ValueError:
        return None


def match(
    experiment: Experiment, target: int, tolerance: float = TOLERANCE, vary: str = VARY, name: str = "the model"
) -> tuple[Experiment, int]:
    """(`experiment` with every field that the regular expression `vary` names set to the n at which the model has `target`
    parameters, n). See `solve`; also raises UserError when no integer field has such a path, with the nearest."""
    known = [path for path in paths(experiment) if path.startswith("model.")]
    fields = [path for path in known if re.fullmatch(vary, path) and _is_integer(experiment, path)]
    if not fields:
        raise UserError(
            f"{name}: matching sizes varies {vary!r}, which no integer field of the model is called; {nearest(vary, known)}"
        )

    def varied(n: int) -> Experiment:
        return replaced(experiment, [(path, n) for path in fields])

    n = solve(lambda n: count(varied(n).model.specs()), target, tolerance, name, fields[0].rpartition(".")[2])
    return varied(n), n


def held(experiment: Experiment, vary: str = VARY) -> int | None:
    """The one value that all fields that `vary` names have, derived ones included; None where there are several or none."""
    names = [path for path in paths(experiment) if path.startswith("model.") and re.fullmatch(vary, path)]
    values = {_value(experiment, path) for path in names if _is_integer(experiment, path)}
    return values.pop() if len(values) == 1 else None


def _value(experiment: Experiment, path: str) -> int | None:
    """The value of a field; for a `d_hidden` of None the width that its layer derives, which is called `hidden`."""
    owner, _, name = path.rpartition(".")
    found, layer = _at(experiment, path), _at(experiment, owner)
    if found is not None:
        return found
    if getattr(layer, "d_model", 0) is None:
        layer = bind(layer, experiment.model.d_model)
    return getattr(layer, name.removeprefix("d_"), None)


def _is_integer(experiment: Experiment, path: str) -> bool:
    value = _at(experiment, path)
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _at(experiment: Experiment, path: str) -> Any:
    value = experiment
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, tuple) else getattr(value, part)
    return value
