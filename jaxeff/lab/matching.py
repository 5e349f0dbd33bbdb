"""Models of equal size: the width of the channel mixer makes up for what the sequence mixer saves or spends.

Counts come from the tree of Specs, so nothing is allocated. Each width adds the same number of parameters, hence the width
is found from two counts by division and then checked.
"""

import dataclasses
from collections.abc import Callable

from jaxeff.core.errors import UserError, lookup
from jaxeff.core.spec import count
from jaxeff.mixers.registry import MIXERS
from jaxeff.models.block import Block

TOLERANCE = 0.01
# The widest of these steps whose nearest width is within the tolerance: multiples of 8 fill vector units and tiles.
STEPS = (8, 4, 2, 1)


def solve(size: Callable[[int], int], target: int, tolerance: float = TOLERANCE, name: str = "the model") -> int:
    """The width f >= 1 for which `size(f)` is nearest to `target`, at multiples of 8 where these are near enough.

    Raises UserError when no width comes within `tolerance`, with the size that the narrowest MLP leaves.
    """
    least = size(1)
    slope = size(2) - least
    if slope <= 0:
        raise UserError(f"{name}: the MLP's width does not change the number of parameters, so nothing can be matched")
    exact = 1 + (target - least) / slope
    for step in STEPS:
        width = max(step, round(exact / step) * step)
        if abs(size(width) / target - 1) <= tolerance:
            return width
    width = max(1, round(exact))
    found = size(width)
    raise UserError(
        f"{name}: no MLP width gives {target:,} parameters within {tolerance:.1%}: d_hidden={width} gives {found:,} "
        f"({found / target - 1:+.1%})"
        + (f", and without an MLP there are already {least - slope:,}" if exact < 1 else "")
    )


def with_width(model, d_hidden: int):
    """`model` with every MLP `d_hidden` wide. Raises UserError when it has none."""
    changed = 0

    def widen(entry):
        nonlocal changed
        block = Block(lookup(MIXERS, entry, "mixer")()) if isinstance(entry, str) else entry
        if not hasattr(block.mlp, "d_hidden"):
            return block
        changed += 1
        return dataclasses.replace(block, mlp=dataclasses.replace(block.mlp, d_hidden=d_hidden))

    pattern = tuple(map(widen, model.pattern))
    more = tuple(dataclasses.replace(segment, pattern=tuple(map(widen, segment.pattern))) for segment in model.more)
    if not changed:
        raise UserError("matching sizes needs at least one block with an MLP that has a d_hidden")
    return dataclasses.replace(model, pattern=pattern, more=more)


def match(model, target: int, tolerance: float = TOLERANCE, name: str = "the model"):
    """`model` with the MLP width at which it has `target` parameters, within `tolerance`. See `solve`."""
    return with_width(model, solve(lambda f: count(with_width(model, f).specs()), target, tolerance, name))
