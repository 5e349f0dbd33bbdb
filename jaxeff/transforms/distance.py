"""How far rewritten weights lie from what they were: what low rank, masks and few bits lose of each.

e = |W' - W| / |W|        Frobenius norms of W before and W' after
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.core.weight import dense
from jaxeff.transforms.adapter import AdapterWeight
from jaxeff.transforms.node import spec_of
from jaxeff.transforms.plan import weights


@dataclasses.dataclass(frozen=True)
class Distance:
    """Of one path. largest, mean: e over the weights of a stack, that of a weight by itself; lost, size: |W' - W|^2 and |W|^2,
    summed over them."""

    largest: float
    mean: float
    lost: float
    size: float


def distances(specs, before, after) -> dict[str, Distance]:
    """path -> Distance of each weight that has become another one, whatever it was made of: an adapter that adds nothing yet has
    changed nothing, and of a bottleneck (`Adapter`) the weight that it stands on counts.

    specs: those of `before`. before, after: trees of values; what only one of them has is left out.

    Raises ValueError where a weight's shape is another one.
    """
    known, old = weights(specs), weights(before)
    found = {
        path: _distance(path, old[path], w, spec_of(known[path]).n_stacked)
        for path, w in weights(after).items()
        if path in old and w is not old[path]
    }
    return {path: distance for path, distance in found.items() if distance.lost != 0}


def _distance(path: str, before: Any, after: Any, n_stacked: int) -> Distance:
    w, w_after = (_matrix(x) for x in (before, after))
    if w.shape != w_after.shape:
        raise ValueError(f"{path} has shape {w_after.shape}, and had {w.shape} before")
    own = tuple(range(n_stacked, w.ndim))
    lost, size = (np.asarray(jnp.sum(jnp.square(x), axis=own), np.float64) for x in (w_after - w, w))
    e = np.sqrt(lost / np.maximum(size, np.finfo(np.float32).tiny))
    return Distance(float(e.max()), float(e.mean()), float(lost.sum()), float(size.sum()))


def _matrix(weight: Any) -> jax.Array:
    """A weight as a float32 array."""
    return dense(weight.base if isinstance(weight, AdapterWeight) else weight, jnp.float32)


def overall(found: Mapping[str, Distance]) -> float:
    """e of all these weights as one; 0 for none."""
    size = math.fsum(d.size for d in found.values())
    return math.sqrt(math.fsum(d.lost for d in found.values()) / size) if size else 0.0


def table(found: Mapping[str, Distance], n: int = 5) -> str:
    """The `n` weights that lie farthest from what they were, the farthest first, and all together; one line each."""
    worst = sorted(found, key=lambda path: -found[path].largest)[:n]
    width = 2 + max(map(len, ("|after - before| / |before|", *worst)))
    lines = [f"{'|after - before| / |before|':<{width}}{'largest':>12}{'mean':>12}"]
    lines += [f"{path:<{width}}{found[path].largest:>12.2e}{found[path].mean:>12.2e}" for path in worst]
    if len(found) > n:
        lines.append(f"and {len(found) - n} more")
    return "\n".join([*lines, f"{'all together':<{width}}{overall(found):>12.2e}"])
