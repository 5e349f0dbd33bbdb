"""What the Mosaic kernels share of recurrences whose channels are each by themselves: tokens follow each other within a register.

B batch, T time, D channels, C channels of a step, S tokens of a register.
"""

from collections.abc import Callable

import jax
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from jaxeff.core.sharding import Rules, pspec
from jaxeff.ops.pallas import spread
from jaxeff.ops.pallas.chunks import CHUNK, LANES

SUBLANES = 8


def why_not(x_BTD: jax.Array, mesh, rules: Rules, axis: str) -> str | None:
    """Why a kernel cannot serve a call, or None. axis: the logical axis of channels."""
    if (T := x_BTD.shape[1]) < CHUNK:
        return f"needs {CHUNK} tokens, found {T}"
    D = spread.part(x_BTD.shape, ("batch", None, axis), mesh, rules)[2]
    return f"needs channels of a multiple of {LANES}, found {D}" if D % LANES else None


def on_each_device(run: Callable, arrays: dict, axes: dict, mesh, rules: Rules):
    """`run(**arrays)`, which gives y as x and a state, by each device of the mesh for its rows and channels. arrays: by name, or
    None; axes: their logical axes."""

    def specs():
        of = {n: PartitionSpec() if x is None else pspec(axes[n], x.shape, mesh, rules) for n, x in arrays.items()}
        return (of,), (of["x"], of["state"])

    return spread.on_each_device(lambda arrays: run(**arrays), (arrays,), mesh, specs)


def channels_of_a_step(D: int, most: int) -> int:
    """C."""
    return next(c for c in range(min(most, D) // LANES * LANES, 0, -LANES) if D % c == 0)


def rows(n):
    """Where the tokens of register n lie."""
    return pl.ds(pl.multiple_of(SUBLANES * n, SUBLANES), SUBLANES)
