"""The scores of an objective over a split. B batch, T time."""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np

from jaxeff.core.errors import UserError
from jaxeff.core.precision import POLICIES, Policy
from jaxeff.core.sharding import batch_sharding
from jaxeff.core.target import compiler_options
from jaxeff.mixers.base import Ctx
from jaxeff.objectives.base import Objective, Sum


class Evaluation(NamedTuple):
    """Scores by name, and the sums that they come from, in float64."""

    scores: dict[str, float]
    sums: dict[str, Sum]


def evaluate(
    objective: Objective,
    model,
    params,
    batches: Iterable[dict],
    *,
    policy: Policy = POLICIES["float32"],
    mesh=None,
    limit: int | None = None,
    report: Callable[..., None] | None = None,
) -> Evaluation:
    """The objective's scores over all that the batches ask to predict.

    batches: as `jaxeff.data` yields them for evaluation. limit: how many batches, None for all. Raises UserError when there is
    nothing to predict.
    """
    batches = list(itertools.islice(batches, limit))
    sums_of = _sums(objective, model, policy, mesh)
    lay = batch_sharding(mesh) if mesh is not None else None
    found: dict[str, np.ndarray] = {}
    pending = None
    if batches and report is not None:
        report("evaluating", 0, len(batches))
    for i, batch in enumerate([*batches, None]):
        # The sums of the batch before are read only after this one has been sent off.
        queued = None if batch is None else sums_of(params, _put(batch, lay))
        for name, value in ({} if pending is None else jax.device_get(pending)).items():
            found[name] = found.get(name, 0.0) + np.stack([np.sum(x, dtype=np.float64) for x in value])
        pending = queued
        if batch is not None and report is not None:
            report("evaluating", i + 1, len(batches))
    sums = {name: Sum(*map(float, value)) for name, value in found.items()}
    if not sums or not all(sum.weight > 0 for sum in sums.values()):
        raise UserError("the split has nothing to predict: give it a larger share of the data")
    return Evaluation(objective.scores(sums), sums)


def _put(batch: dict, sharding):
    """Each process has the whole batch, and puts its part of it on its devices."""
    if sharding is None:
        return jax.device_put(batch)
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    return {name: jax.make_array_from_callback(x.shape, sharding, x.__getitem__) for name, x in batch.items()}


@functools.lru_cache(maxsize=32)
def _sums(objective: Objective, model, policy: Policy, mesh):
    """The jitted sums over a batch, one per model. What layers tell is for training."""
    ctx = Ctx(policy=policy, mesh=mesh if mesh is not None and mesh.size > 1 else None)

    @functools.partial(jax.jit, compiler_options=None if mesh is None else compiler_options(mesh))
    def sums(params, batch):
        return {n: s for n, s in objective.sums(model, params, batch, ctx).items() if "/" not in n}

    return sums
