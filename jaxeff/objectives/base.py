"""What is minimised, and how good a model is: the contract of every objective.

An objective turns parameters and a batch into sums with their weights. Sums of micro-batches, devices and evaluation batches add
up; means do not.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError, nearest
from jaxeff.mixers.base import Ctx
from jaxeff.models.stack import losses


class Sum(NamedTuple):
    """A weighted sum and the sum of its weights, float32 scalars on the device."""

    total: Any
    weight: Any

    @property
    def mean(self):
        """The weighted mean; 0 where nothing was weighed."""
        if isinstance(self.weight, jax.Array):
            return self.total / jnp.where(self.weight > 0, self.weight, jnp.ones_like(self.weight))
        return self.total / (self.weight or 1.0)


class Score(NamedTuple):
    """The result to follow, by name, and its direction."""

    name: str
    higher_is_better: bool = False

    def describe(self, value: float) -> str:
        """ "2.5880 bits per byte"."""
        return f"{value:.4f} {self.name.replace('_', ' ')}"

    def badness(self, value: float) -> float:
        """Lower is better."""
        return -value if self.higher_is_better else value


class Objective(Protocol):
    """A frozen dataclass of settings. `score` is what evaluation, the best checkpoint, sweeps and ablations follow."""

    score: Score

    def sums(self, model, params, batch: Mapping[str, jax.Array], ctx: Ctx = Ctx()) -> dict[str, Sum]:
        """Sums over a batch by name. `loss` among them is what is minimised; its weight weighs the batch among others.
        Names with a `/` are metrics that the model's layers tell."""

    def loss(self, sums: Mapping[str, Sum]) -> jax.Array:
        """The scalar to minimise."""

    def scores(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """The named results of sums on the host."""


def with_aux(sums: dict[str, Sum], aux: Mapping[str, jax.Array]) -> dict[str, Sum]:
    """`sums` with a model's auxiliary losses added to the loss, and all that its layers tell as metrics under their paths."""
    total, weight = sums["loss"]
    told = {path: value.astype(jnp.float32) for path, value in aux.items() if path.rpartition("/")[2] != "output"}
    metrics = {path: Sum(value * weight, weight) for path, value in told.items()}
    return sums | {"loss": Sum(total + losses(aux) * weight, weight)} | metrics


def check_score(objective: Objective, sums: Mapping[str, Sum]) -> None:
    """Raises UserError when `objective.score` is not among the scores of such sums (shapes are enough)."""
    names = objective.scores({name: Sum(1.0, 1.0) for name in sums})
    if objective.score.name not in names:
        raise UserError(
            f"{type(objective).__name__} follows the score {objective.score.name!r}, which it cannot compute on this data; "
            f"{nearest(objective.score.name, names)}"
        )
