"""Adapters of two vectors around random factors that all layers share (Kopiczko et al. 2023, "VeRA"). R rank.

    y = x W + ((x A) * d) B * b        A [I, R], B [R, O] drawn once for each shape and frozen; d [R] = 0.1, b [O] = 0 at the start

Only d and b train: R + O numbers a weight.
"""

import dataclasses
from zlib import crc32

import jax

from jaxeff.core.spec import Constant, Site, Spec, zeros
from jaxeff.core.weight import Weight
from jaxeff.transforms import rank as ranks
from jaxeff.transforms.lora import uniform
from jaxeff.transforms.node import drawn, spec_of
from jaxeff.transforms.pair import UpdatedWeight, pair
from jaxeff.transforms.plan import Plan, not_a_matrix, rewriting, targets, weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VeRAWeight(UpdatedWeight):
    """base + (A d) (B b). base: any weight [*L, *I, *O]; a [*L, *I, R]; b [*L, R, *O]; inner [*L, R]; outer [*L, *O]."""

    base: jax.Array | Weight
    a: jax.Array
    b: jax.Array
    inner: jax.Array
    outer: jax.Array
    n_in: int = dataclasses.field(default=1, metadata={"static": True})

    @property
    def factors(self) -> tuple[jax.Array, jax.Array]:
        """(A, B with both vectors in it)."""
        n = self.inner.ndim - 1
        wide = self.outer.reshape(*self.outer.shape[:n], 1, *self.outer.shape[n:])
        return self.a, self.b * wide * self.inner.reshape(*self.inner.shape, *(1,) * (self.b.ndim - n - 1))


@dataclasses.dataclass(frozen=True)
class Common:
    """Factors for a shape, the same wherever that shape occurs: from `seed`, not from the run's key."""

    seed: int

    def __call__(self, key, shape, dtype, site: Site):
        key = jax.random.fold_in(jax.random.key(self.seed), crc32(repr((shape, site.n_in)).encode()))
        return uniform(key, shape, dtype, site)


@dataclasses.dataclass(frozen=True)
class VeRA:
    """Vectors around frozen random factors, for the weights that `rules` match, regexes on their paths, or (regex, rank); they
    alone train.

    rank: of rules without one. A rank may be larger than the weight's. d: the initial value of the inner vector. seed: of the
    factors, which every weight of one shape has in common; they are drawn again from it wherever the adapter is used.

    `plan` raises UserError for a rule that matches nothing or what is no matrix, and for a weight that has an adapter already.
    """

    rules: ranks.Rules = ("blocks/.*/mixer/(q|v)",)
    rank: int = 256
    d: float = 0.1
    seed: int = 0

    def __post_init__(self):
        ranks.check_rules(self.rules, self.rank, "VeRA")

    def plan(self, specs) -> Plan:
        """See `transforms.plan.Plan`."""
        known, found = weights(specs), targets(specs, self.rules, "VeRA", "adapter", not_a_matrix, self.rank)
        common = Common(self.seed)

        def declared(path: str, rank: int) -> VeRAWeight:
            spec = spec_of(known[path])
            a, b = pair(spec, rank, common, common)
            stacked, outer = spec.axes[: spec.n_stacked], spec.axes[spec.n_stacked + spec.n_in :]
            inner = Spec((*spec.stacked, rank), (*stacked, "rank"), Constant(self.d), n_in=0, n_stacked=spec.n_stacked)
            outer = Spec((*spec.stacked, *spec.outputs), (*stacked, *outer), zeros, n_in=0, n_stacked=spec.n_stacked)
            return VeRAWeight(known[path], a, b, inner, outer, spec.n_in)

        nodes = {path: declared(path, rank) for path, rank in found.items()}

        def fill(path: str, weight, key) -> VeRAWeight:
            return drawn(nodes[path], ("a", "b", "inner", "outer"), path, weight, key)

        return rewriting(specs, nodes, fill, ("inner", "outer"))
