"""Weights of low rank by truncated singular values (Eckart and Young 1936). R rank, I inputs, O outputs of a weight.

    W ~ A B        A = S^-1 U sqrt(s) [I, R], B = sqrt(s) V^T [R, O], from U s V^T = S W

Of all pairs of rank R it has the least |S (W - A B)|. S = 1 is the plain one. With S^T S the covariance of the inputs x that is the
least E|x W - x A B|^2 (Wang et al. 2024, "SVD-LLM"); with a diagonal S it weighs the inputs, by sqrt(E|x|) (Yuan et al. 2023,
"ASVD", alpha 1/2) or by the root of the summed Fisher information of their weights (Hsu et al. 2022, "FWSVD").

The factors train where W did. In a stack all weights have one rank. Trained from the beginning, factors start as those of initial
values, the spectral initialisation, and what decays is their product, not each of them (Khodak et al. 2021):

    loss + decay / 2 sum |A B|^2        |A B|^2 = tr(A^T A B B^T), without forming A B
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.core.errors import UserError, lookup
from jaxeff.core.spec import Spec
from jaxeff.core.weight import Weight, dense, terms
from jaxeff.transforms import rank as ranks
from jaxeff.transforms.calibrate import Evidence, needed
from jaxeff.transforms.node import Node, matrix
from jaxeff.transforms.pair import pair, product, rows, whole
from jaxeff.transforms.plan import Plan, not_a_matrix, rewriting, targets, weights

Method = Literal["plain", "whitened", "asvd", "fisher"]
NEEDS = {"plain": (), "whitened": ("covariance",), "asvd": ("absolute",), "fisher": ("fisher",)}
LEAST = 1e-6  # times the mean: the least weight of an input, that S has an inverse


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRankWeight(Node):
    """A B. a [*L, *I, R]; b [*L, R, *O]: any weights."""

    a: jax.Array | Weight
    b: jax.Array | Weight
    n_in: int = dataclasses.field(default=1, metadata={"static": True})

    stage, parts = "low rank", ("a", "b")

    @property
    def n_stacked(self) -> int:
        """How many leading dimensions number equal weights."""
        return self.a.ndim - self.n_in - 1

    @property
    def ndim(self) -> int:
        """That of the product."""
        return self.n_stacked + self.n_in + self.b.ndim - self.n_stacked - 1

    def spec(self) -> Spec:
        """That of the product."""
        a, b = (x.spec() if isinstance(x, Node) else x for x in (self.a, self.b))
        axes = (*a.axes[:-1], *b.axes[b.n_stacked + 1 :])
        return Spec((*a.shape[:-1], *b.outputs), axes, dtype=a.dtype, n_in=a.n_in, n_stacked=a.n_stacked)

    def dense(self, dtype) -> jax.Array:
        """A B."""
        return whole(self.a, self.b, self.n_in, dtype)

    def squared_norm(self) -> jax.Array:
        """|A B|^2, summed over a stack, float32."""
        a, b = (dense(x, jnp.float32) for x in (self.a, self.b))
        a = a.reshape(*a.shape[: self.n_stacked], -1, a.shape[-1])
        b = b.reshape(*a.shape[:-2], a.shape[-1], -1)
        turned = lambda x: jnp.swapaxes(x, -1, -2)
        return jnp.sum((turned(a) @ a) * turned(b @ turned(b)))

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """x A B, or its transpose's."""
        t = terms(eqn, self.n_stacked, self.n_in)
        return product(t, x, self.a, self.b) if t.forward or t.backward else super().einsum(eqn, x)

    def take(self, ids: jax.Array, dtype) -> jax.Array:
        """Rows of A, times B."""
        return rows(self.a, self.b, ids, dtype)


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The weights that `rules` match, regexes on their paths, or (regex, rank), as products of two narrow factors.

    rank: of rules without one. A rank is at most what the weight allows, min(I, O); a larger one is lowered to that and logged, or
    refused if `strict`. Factors are smaller than the weight below rank I O / (I + O), and larger above, which is logged too.

    method: what weighs the loss, "plain", "whitened" by covariance, "asvd" by activations or "fisher"; all but the first need
    evidence to lift, of the kind that `evidence` names, see `calibrate`.

    decay: of the squared norm of the product, in the loss; with it, optim.weight_decay should leave the factors alone.

    energy, budget: in place of ranks, what `by_energy` or `by_budget` choose them by; only values tell which these are, so
    `settled` comes before `plan`.

    `plan` raises UserError for a rule that matches nothing or what is no matrix, and for a weight that any transform has made
    something of already.
    """

    rules: ranks.Rules = ("blocks/.*/mlp/(up|gate|down)",)
    rank: int = 32
    method: Method = "plain"
    strict: bool = False
    decay: float = 0.0
    energy: float | None = None
    budget: float | None = None

    def __post_init__(self):
        ranks.check_rules(self.rules, self.rank, "LowRank")
        lookup(NEEDS, self.method, "LowRank.method")
        if self.decay < 0:
            raise ValueError(f"LowRank.decay must be at least 0, found {self.decay}")
        if self.energy is not None and self.budget is not None:
            raise ValueError("LowRank takes energy or budget, not both")
        for name in ("energy", "budget"):
            _check_share(f"LowRank.{name}", getattr(self, name))
            if getattr(self, name) is not None and not all(isinstance(rule, str) for rule in self.rules):
                raise ValueError(f"LowRank.{name} chooses the ranks: rules are regexes alone, found {self.rules!r}")

    @property
    def evidence(self) -> tuple[str, ...]:
        """The statistics that lifting needs."""
        return NEEDS[self.method]

    def settled(self, specs, params, evidence: Mapping[str, Evidence] | None = None) -> "LowRank":
        """The same with ranks, chosen by the values where `energy` or `budget` is to."""
        if self.energy is None and self.budget is None:
            return self
        choose, share = (by_budget, self.budget) if self.energy is None else (by_energy, self.energy)
        found = choose(specs, params, self.rules, share, self.method, evidence)
        return dataclasses.replace(found, decay=self.decay)

    def at_any_rank(self) -> "LowRank":
        """The same before its ranks are known, to see whether it fits."""
        return dataclasses.replace(self, energy=None, budget=None)

    def plan(self, specs, evidence: Mapping[str, Evidence] | None = None) -> Plan:
        """See `transforms.plan.Plan`."""
        if self.energy is not None or self.budget is not None:
            raise UserError(
                "LowRank(energy=...) and LowRank(budget=...) choose ranks by the values of weights:"
                " jaxeff transform does it for a run, settled(specs, params) in Python"
            )
        known, found = weights(specs), targets(specs, self.rules, "LowRank", "low rank", not_a_matrix, self.rank)

        def declared(path: str, rank: int) -> LowRankWeight:
            spec = known[path]
            rank = ranks.allowed(path, spec, rank, "LowRank", self.strict)
            ranks.warn_if_larger(path, spec, rank)
            a, b = pair(spec, rank, spec.init, spec.init)
            return LowRankWeight(a, b, spec.n_in)

        nodes = {path: declared(path, rank) for path, rank in found.items()}

        def fill(path: str, w: jax.Array, key) -> LowRankWeight:
            node, spec = nodes[path], known[path]
            to, back = weighing(self.method, path, evidence, spec)
            u, s, v = ranks.singular(
                to(matrix(w.astype(jnp.float32), spec.n_stacked, spec.n_in)), node.a.shape[-1], key
            )
            root = jnp.sqrt(s)
            a, b = back(u * root[..., None, :]), root[..., :, None] * v
            return LowRankWeight(
                a.reshape(node.a.shape).astype(w.dtype), b.reshape(node.b.shape).astype(w.dtype), spec.n_in
            )

        def penalty(params) -> jax.Array:
            known = weights(params)
            return 0.5 * self.decay * sum(known[path].squared_norm() for path in nodes)

        return rewriting(specs, nodes, fill, penalty=penalty if self.decay else None)


def weighing(
    method: Method, path: str, evidence: Mapping[str, Evidence] | None, spec: Spec
) -> tuple[Callable, Callable]:
    """(x -> S x, x -> S^-1 x) for x [*L, I, ...] that belongs to the weight at `path`.

    Raises UserError when the evidence that the method needs is not there.
    """
    if method == "plain":
        return (lambda x: x), (lambda x: x)
    found = needed(f"LowRank(method={method!r})", NEEDS[method], path, evidence)
    if method == "whitened":
        size, q = jnp.linalg.eigh(found.covariance)
        size = jnp.sqrt(_at_least(size, jnp.mean(size, axis=-1, keepdims=True)))[..., None]
        return (lambda x: size * (jnp.swapaxes(q, -1, -2) @ x)), (lambda x: q @ (x / size))
    if method == "asvd":
        size = jnp.sqrt(found.absolute)
    else:
        size = jnp.sqrt(jnp.sum(matrix(found.fisher, spec.n_stacked, spec.n_in), axis=-1))
    size = _at_least(size, jnp.mean(size, axis=-1, keepdims=True))[..., None]
    return (lambda x: size * x), (lambda x: x / size)


def _at_least(x: jax.Array, mean: jax.Array) -> jax.Array:
    """x, but nowhere less than a small share of the mean: no input counts for nothing."""
    return jnp.maximum(x, LEAST * mean)


def by_energy(
    specs,
    params,
    rules: tuple[str, ...],
    energy: float,
    method: Method = "plain",
    evidence: Mapping[str, Evidence] | None = None,
) -> LowRank:
    """LowRank with the least ranks whose singular values hold a share `energy` of each weight's squared norm |S W|^2; in a stack,
    of the sum over its weights.

    Raises ValueError for a share not in (0, 1], UserError as `LowRank.plan` does.
    """
    _check_share("energy", energy)

    def least(squares: np.ndarray) -> int:
        share = np.cumsum(squares) / max(squares.sum(), np.finfo(np.float64).tiny)
        return int(np.searchsorted(share, energy * (1 - 1e-12)) + 1)

    spectra = _spectra(specs, params, rules, method, evidence)
    return LowRank(tuple((_quoted(path), min(least(s), len(s))) for path, (s, _) in spectra.items()), method=method)


def by_budget(
    specs,
    params,
    rules: tuple[str, ...],
    share: float,
    method: Method = "plain",
    evidence: Mapping[str, Evidence] | None = None,
) -> LowRank:
    """LowRank with the ranks that lose least in all matched weights together, the factors having `share` of their numbers.

    Each further rank of a weight costs (I + O) numbers and keeps the square of one singular value: the ranks are those of the
    largest squares per number, until the budget is spent. Every weight keeps rank 1.

    Raises ValueError for a share not in (0, 1] or too small for that, UserError as `LowRank.plan` does.
    """
    _check_share("share", share)
    spectra = _spectra(specs, params, rules, method, evidence)
    budget = share * sum(spec.size for _, spec in spectra.values())
    costs = {
        path: math.prod(spec.stacked) * (math.prod(spec.inputs) + math.prod(spec.outputs))
        for path, (_, spec) in spectra.items()
    }
    left = budget - sum(costs.values())
    if left < 0:
        least = sum(costs.values()) / (budget / share)
        raise ValueError(f"share={share} is less than rank 1 of every weight takes, {least:.4f}")
    found = dict.fromkeys(spectra, 1)
    steps = sorted(
        ((s[r] / costs[path], path) for path, (s, _) in spectra.items() for r in range(1, len(s))), reverse=True
    )
    for _, path in steps:  # squares of one weight fall, so its ranks come in order
        if costs[path] > left:
            break
        found[path], left = found[path] + 1, left - costs[path]
    return LowRank(tuple((_quoted(path), rank) for path, rank in found.items()), method=method)


def _check_share(name: str, share: float | None) -> None:
    if share is not None and not 0 < share <= 1:
        raise ValueError(f"{name} must lie in (0, 1], found {share}")


def _spectra(specs, params, rules, method, evidence) -> dict[str, tuple[np.ndarray, Spec]]:
    """path -> (squared singular values, summed over a stack, in float64; Spec)."""
    known, values = weights(specs), weights(params)
    found = targets(specs, rules, "LowRank", "low rank", not_a_matrix)

    def one(path: str) -> tuple[np.ndarray, Spec]:
        spec, w = known[path], values[path]
        if not bool(jnp.all(jnp.isfinite(w))):
            raise UserError(f"LowRank: {path} has numbers that are not finite")
        to, _ = weighing(method, path, evidence, spec)
        w = np.asarray(to(matrix(w.astype(jnp.float32), spec.n_stacked, spec.n_in)), np.float64)
        s = np.linalg.svd(w, compute_uv=False)
        return np.sum(np.square(s).reshape(-1, s.shape[-1]), axis=0), spec

    return {path: one(path) for path in found}


def _quoted(path: str) -> str:
    """A rule that matches this path only."""
    return re.escape(path)
