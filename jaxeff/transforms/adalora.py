"""Low-rank adapters whose ranks find their places (Zhang et al. 2023, "AdaLoRA"). R rank, I inputs, O outputs of a weight.

    y = x W + s ((x P) * l) Q        P [I, R], Q [R, O] of small noise, l [R] = 0 at the start        s = alpha / R

Every triplet (a column of P, a number of l, a row of Q) has an importance: with g the gradient of a number w, the sensitivity |w g|
is smoothed over steps, and so is its distance from that average, the uncertainty; their product, of l and averaged over P's column
and Q's row, is summed up (equations 8 to 11). A budget of triplets for all weights together falls from R each to `target` each,
as a cubic of the time (equation 12); l is set to zero where a triplet is not among the most important, and may grow again. The loss
has a penalty on |P^T P - 1|^2 + |Q Q^T - 1|^2, which keeps triplets apart (equation 4).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Normal, Spec, zeros
from jaxeff.core.weight import Weight
from jaxeff.transforms import rank as ranks
from jaxeff.transforms.node import drawn, spec_of
from jaxeff.transforms.pair import UpdatedWeight, pair
from jaxeff.transforms.plan import Plan, map_weights, not_a_matrix, rewriting, targets, weights

PARTS = ("p", "values", "q")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaLoRAWeight(UpdatedWeight):
    """base + scale P diag(values) Q. base: any weight [*L, *I, *O]; p [*L, *I, R]; values [*L, R]; q [*L, R, *O]."""

    base: jax.Array | Weight
    p: jax.Array
    values: jax.Array
    q: jax.Array
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})
    n_in: int = dataclasses.field(default=1, metadata={"static": True})

    @property
    def factors(self) -> tuple[jax.Array, jax.Array]:
        """(P, Q with the values and the scale in it)."""
        n = self.values.ndim - 1
        values = self.values.reshape(*self.values.shape, *(1,) * (self.q.ndim - n - 1))
        return self.p, self.q * (self.scale * values).astype(self.q.dtype)


class Average(NamedTuple):
    """Smoothed sensitivity and uncertainty of one array."""

    sensitivity: jax.Array
    uncertainty: jax.Array


@dataclasses.dataclass(frozen=True)
class AdaLoRA:
    """Adapters beside the weights that `rules` match, regexes on their paths, or (regex, rank at the start); they alone train.

    rank: at the start, of rules without one. target: triplets a weight has in the end, on average. begin, end: shares of the run at
    which the budget starts to fall and has fallen. every: steps between two choices. b1, b2: smoothing of sensitivity and
    uncertainty. orthogonality: the penalty's factor, on the mean over weights. alpha: the update's scale is alpha / rank. strict:
    whether a rank above what the weight allows is refused, wide: whether it is kept; else it is lowered to that and logged.

    `plan` raises UserError for a rule that matches nothing or what is no matrix, and for a weight that has an adapter already.
    """

    rules: ranks.Rules = ("blocks/.*/mixer/(q|v)",)
    rank: int = 12
    target: float = 8.0
    begin: float = 0.1
    end: float = 0.7
    every: int = 10
    b1: float = 0.85
    b2: float = 0.85
    orthogonality: float = 0.1
    alpha: float = 16.0
    strict: bool = False
    wide: bool = False

    def __post_init__(self):
        ranks.check_rules(self.rules, self.rank, "AdaLoRA")
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(f"AdaLoRA needs 0 <= begin < end <= 1, found {self.begin} and {self.end}")
        if self.every < 1:
            raise ValueError(f"AdaLoRA.every must be at least 1, found {self.every}")
        least = min((self.rank if isinstance(rule, str) else rule[1] for rule in self.rules), default=self.rank)
        if not 0 < self.target <= least:
            raise ValueError(
                f"AdaLoRA.target must lie in (0, {least}], the least rank of its rules, found {self.target}"
            )

    def plan(self, specs) -> Plan:
        """See `transforms.plan.Plan`."""
        known, found = weights(specs), targets(specs, self.rules, "AdaLoRA", "adapter", not_a_matrix, self.rank)

        def declared(path: str, rank: int) -> AdaLoRAWeight:
            spec = spec_of(known[path])
            rank = ranks.allowed(path, spec, rank, "AdaLoRA", self.strict, self.wide)
            p, q = pair(spec, rank, Normal(0.02), Normal(0.02))
            values = Spec(
                (*spec.stacked, rank), (*spec.axes[: spec.n_stacked], "rank"), zeros, n_in=0, n_stacked=spec.n_stacked
            )
            return AdaLoRAWeight(known[path], p, values, q, self.alpha / rank, spec.n_in)

        nodes = {path: declared(path, rank) for path, rank in found.items()}
        budget = _budget(self, nodes)

        def fill(path: str, weight, key) -> AdaLoRAWeight:
            return drawn(nodes[path], PARTS, path, weight, key)

        def penalty(params) -> jax.Array:
            own = weights(params)
            return self.orthogonality * sum(_overlap(own[path]) for path in nodes) / len(nodes)

        def memory(params) -> dict[str, Any]:
            own = weights(params)
            nothing = lambda x: jnp.zeros(x.shape, jnp.float32)
            return {p: {n: Average(*(nothing(getattr(own[p], n)) for _ in range(2))) for n in PARTS} for p in nodes}

        def after(params, grads, memory, step, steps):
            own, slopes = weights(params), weights(grads)
            memory = {
                path: {n: self._smoothed(getattr(own[path], n), getattr(slopes[path], n), old[n]) for n in PARTS}
                for path, old in memory.items()
            }
            importance = {path: _importance(own[path], averages) for path, averages in memory.items()}
            kept = _most(importance, budget(step, steps))
            due = (step % self.every == 0) | (_done(step, steps) >= self.end)

            def one(path: str, w):
                if path not in nodes:
                    return w
                values = jnp.where(kept[path] | ~due, w.values, jnp.zeros((), w.values.dtype))
                return dataclasses.replace(w, values=values)

            return map_weights(one, params), memory

        return rewriting(specs, nodes, fill, PARTS, penalty=penalty, memory=memory, after=after)

    def _smoothed(self, w: jax.Array, g: jax.Array, old: Average) -> Average:
        """Equations 9 and 10."""
        now = jnp.abs(w.astype(jnp.float32) * g.astype(jnp.float32))
        sensitivity = self.b1 * old.sensitivity + (1 - self.b1) * now
        return Average(sensitivity, self.b2 * old.uncertainty + (1 - self.b2) * jnp.abs(now - sensitivity))


def _overlap(w: AdaLoRAWeight) -> jax.Array:
    """|P^T P - 1|^2 + |Q Q^T - 1|^2, the mean over a stack."""
    n, rank = w.values.ndim - 1, w.values.shape[-1]
    stacked = w.values.shape[:n]
    p = w.p.astype(jnp.float32).reshape(*stacked, -1, rank)
    q = w.q.astype(jnp.float32).reshape(*stacked, rank, -1)
    one = jnp.eye(rank).reshape(*(1,) * n, rank, rank)
    return sum(
        jnp.mean(jnp.sum(jnp.square(x - one), axis=(-2, -1)))
        for x in (jnp.swapaxes(p, -1, -2) @ p, q @ jnp.swapaxes(q, -1, -2))
    )


def _importance(w: AdaLoRAWeight, averages: Mapping[str, Average]) -> jax.Array:
    """Of each triplet, [*L, R]: equation 8."""
    n, rank = w.values.ndim - 1, w.values.shape[-1]
    stacked = w.values.shape[:n]
    p, values, q = (averages[name].sensitivity * averages[name].uncertainty for name in PARTS)
    return values + jnp.mean(p.reshape(*stacked, -1, rank), axis=-2) + jnp.mean(q.reshape(*stacked, rank, -1), axis=-1)


def _most(importance: dict[str, jax.Array], n: jax.Array) -> dict[str, jax.Array]:
    """Where the n most important triplets of all weights stand; of equal ones the first."""
    flat = jnp.concatenate([x.ravel() for x in importance.values()])
    kept, found, start = jnp.argsort(jnp.argsort(-flat, stable=True)) < n, {}, 0
    for path, x in importance.items():
        found[path] = kept[start : start + x.size].reshape(x.shape)
        start += x.size
    return found


def _budget(method: AdaLoRA, nodes: Mapping[str, AdaLoRAWeight]):
    """(step, steps) -> how many triplets all weights have together."""
    whole = sum(node.values.size for node in nodes.values())
    least = round(sum(method.target * node.values.size / node.values.shape[-1] for node in nodes.values()))

    def budget(step: jax.Array, steps: jax.Array) -> jax.Array:
        left = 1.0 - jnp.clip((_done(step, steps) - method.begin) / (method.end - method.begin), 0.0, 1.0)
        return jnp.round(least + (whole - least) * left**3).astype(jnp.int32)

    return budget


def _done(step: jax.Array, steps: jax.Array) -> jax.Array:
    """The share of a run."""
    return step.astype(jnp.float32) / steps.astype(jnp.float32)
