"""Which weights a run has, and which of them train."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError
from jaxeff.core.tree import combine, match, partition, paths
from jaxeff.models.lm import LM
from jaxeff.transforms.plan import Plan, Transform, chain, weights, within


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of `model` after `transforms`. trainable: regular expressions for weights that train beside the adapters that
    transforms add, or, where there are none, in place of all others; None leaves the choice to the transforms.

    `plan` raises UserError for rules that match nothing or leave nothing to train.
    """

    model: LM
    transforms: tuple[Transform, ...] = ()
    trainable: tuple[str, ...] | None = None

    @functools.cached_property
    def plan(self) -> Plan:
        """The transforms as one, planned on the model's Specs."""
        return chain(*self.transforms).plan(self.model.specs(), model=self.model)

    @property
    def specs(self) -> Any:
        """The Specs of all weights."""
        return self.plan.specs

    @functools.cached_property
    def _trained(self) -> frozenset[str]:
        plan, leaves = self.plan, paths(self.plan.specs)
        floats = {path for path, s in leaves.items() if s.dtype is None or jnp.issubdtype(s.dtype, jnp.inexact)}
        trained = {path for path in floats if plan.trains(path)}
        if self.trainable is not None:
            chosen = match(self.trainable, weights(plan.specs), "rule of trainable")
            inside = within(chosen)
            trained = {
                path
                for path in floats
                if plan.adapters(path) or ((path in chosen or inside(path)) and not plan.frozen(path))
            }
        if not trained:
            raise UserError(
                f"nothing is left to train: trainable={self.trainable!r} names only weights that are frozen"
            )
        return frozenset(trained)

    def trains(self, path: str) -> bool:
        """Whether the leaf at `path` trains."""
        return path in self._trained

    def split(self, tree) -> tuple[Any, Any]:
        """(trained, frozen) of a tree of all weights, each None where the other has the leaf."""
        return partition(tree, lambda path, leaf: self.trains(path))

    def lift(self, plain, key: jax.Array) -> tuple[Any, Any]:
        """(trained, frozen) values, from those of the plain model."""
        return self.split(self.plan.lift(plain, key))

    def whole(self, trained, frozen, key: jax.Array | None = None) -> Any:
        """What the model reads; with a key, for one training step whose random parts draw from it."""
        params = combine(trained, frozen)
        return params if key is None else self.plan.seeded(params, key)
