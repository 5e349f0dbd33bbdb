"""Low-rank adapters (Hu et al. 2021, "LoRA"). R rank, I inputs, O outputs of a weight.

    y = x W + s (dropout(x) A) B        s = alpha / R, or alpha / sqrt(R) (Kalajdzievski 2023, "rsLoRA")

A B is never formed but to merge. On a stack of layers A and B are stacked likewise.
"""

import dataclasses
import math
from typing import Literal
from zlib import crc32

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError, lookup
from jaxeff.core.spec import Site
from jaxeff.core.weight import Weight, dense, einsum, take, terms
from jaxeff.mixers.base import dropout
from jaxeff.transforms import rank as ranks
from jaxeff.transforms.node import STAGES, Node, drawn, matrix, nodes_of, spec_of
from jaxeff.transforms.pair import pair, product, rows, whole
from jaxeff.transforms.plan import Plan, map_weights, not_a_matrix, rewriting, targets, weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoRAWeight(Node):
    """base + scale A B. base: any weight [*L, *I, *O]; a [*L, *I, R]; b [*L, R, *O]; key: of the dropout, None for none."""

    base: jax.Array | Weight
    a: jax.Array
    b: jax.Array
    key: jax.Array | None = None
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})
    n_in: int = dataclasses.field(default=1, metadata={"static": True})

    stage = "adapter"

    @property
    def n_stacked(self) -> int:
        """How many leading dimensions number equal weights."""
        return self.a.ndim - self.n_in - 1

    def dense(self, dtype) -> jax.Array:
        """base + scale A B."""
        return dense(self.base, dtype) + (self.scale * whole(self.a, self.b, self.n_in, self.a.dtype)).astype(dtype)

    def update(self, eqn: str, x: jax.Array) -> jax.Array | None:
        """What the adapter adds to the base's product; None where it cannot be had without A B."""
        t = terms(eqn, self.n_stacked, self.n_in)
        if not (t.forward or t.backward):
            return None
        y = product(t, dropout(x, self.dropout, self.key), self.a, self.b)
        return y * jnp.asarray(self.scale, y.dtype)

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """The base's product and that of the two narrow factors, in either direction."""
        update = self.update(eqn, x)
        return super().einsum(eqn, x) if update is None else einsum(eqn, x, self.base) + update

    def take(self, ids: jax.Array, dtype) -> jax.Array:
        """Rows of the base, and of A times B; without dropout, as there is no activation yet."""
        return take(self.base, ids, dtype) + rows(self.a, self.b, ids, dtype) * jnp.asarray(self.scale, dtype)


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Adapters beside the weights that `rules` match, regexes on their paths, or (regex, rank); they alone train.

    rank: of rules without one. A rank is at most what the weight allows, min(I, O); a larger one is lowered to that and logged,
    refused if `strict`, or kept if `wide`, as an adapter that several weights share may be wider than one of them. alpha: the
    update's scale is alpha / rank, or alpha / sqrt(rank) if `rank_stabilised`. dropout: share of the adapter's inputs dropped
    in training. init: "kaiming", A uniform in +-1/sqrt(I) and B zero; or both from the base, which keeps the rest: "pissa", its
    largest singular triplets (Meng et al. 2024), or "olora", the first columns of its QR decomposition (Buyukakyuz 2024).
    lr_ratio: how many times the learning rate B has (Hayou et al. 2024, "LoRA+", who advise 16).

    `plan` raises UserError for a rule that matches nothing or what is no matrix, for a weight that has an adapter already, and for
    "pissa" and "olora" on a base that is no plain array, which cannot give up a part.
    """

    rules: ranks.Rules = ("blocks/.*/mixer/(q|v)",)
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rank_stabilised: bool = False
    init: Literal["kaiming", "pissa", "olora"] = "kaiming"
    lr_ratio: float = 1.0
    strict: bool = False
    wide: bool = False

    def __post_init__(self):
        for name in ("alpha", "lr_ratio"):
            if not getattr(self, name) > 0:
                raise ValueError(f"LoRA.{name} must be above 0, found {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA.dropout must lie in [0, 1), found {self.dropout}")
        lookup(STARTS, self.init, "LoRA.init")
        ranks.check_rules(self.rules, self.rank, type(self).__name__)

    def plan(self, specs) -> Plan:
        """See `transforms.plan.Plan`."""
        nodes = self.nodes(specs, "LoRA")

        def fill(path: str, weight, key):
            return self.filled(path, nodes[path], weight, key)

        return rewriting(specs, nodes, fill, ("a", "b"), seeded=self.seeded(nodes), rate=self.rate(nodes, "b"))

    def nodes(self, specs, method: str) -> dict[str, LoRAWeight]:
        """path -> node of Specs."""
        known, found = weights(specs), targets(specs, self.rules, method, "adapter", not_a_matrix, self.rank)

        def node(path: str, rank: int) -> LoRAWeight:
            spec = spec_of(known[path])
            rank = ranks.allowed(path, spec, rank, method, self.strict, self.wide)
            scale = self.alpha / (rank**0.5 if self.rank_stabilised else rank)
            inner = next(nodes_of(known[path]), None)
            if self.init != "kaiming" and inner is not None:
                raise UserError(
                    f"{method}(init={self.init!r}) takes a part of {path!r}, which {STAGES[inner.stage]}: only 'kaiming' works"
                )
            return LoRAWeight(known[path], *pair(spec, rank, uniform), None, scale, self.dropout, spec.n_in)

        return {path: node(path, rank) for path, rank in found.items()}

    def filled(self, path: str, node: LoRAWeight, weight, key) -> LoRAWeight:
        """The node of values beside `weight`."""
        if self.init == "kaiming":
            return drawn(node, ("a", "b"), path, weight, key)
        spec = spec_of(node)
        a, b = STARTS[self.init](matrix(weight, spec.n_stacked, spec.n_in), node.a.shape[-1], key)
        a, b = (
            (x * node.scale**-0.5).astype(weight.dtype).reshape(declared.shape)
            for x, declared in ((a, node.a), (b, node.b))
        )
        rest = weight - (node.scale * whole(a, b, spec.n_in, weight.dtype)).astype(weight.dtype)
        return dataclasses.replace(node, base=rest, a=a, b=b)

    def seeded(self, nodes):
        """The `Plan.seeded` of the weights at these paths."""

        def f(params, key):
            return map_weights(lambda path, w: self.seed(path, w, key) if path in nodes else w, params)

        return f if self.dropout else lambda params, key: params

    def seed(self, path: str, weight: LoRAWeight, key) -> LoRAWeight:
        """The node with a key of its own for each of a stack's weights."""
        own, stacked = jax.random.fold_in(key, crc32(path.encode())), weight.a.shape[: weight.n_stacked]
        return dataclasses.replace(weight, key=jax.random.split(own, stacked) if stacked else own)

    def rate(self, nodes, b: str):
        """The `Plan.rate` of the weights at these paths, whose factor B is called `b` in them."""
        faster = {f"{path}/{b}" for path in nodes}
        return lambda path: self.lr_ratio if path in faster else 1.0


def uniform(key, shape, dtype, site: Site):
    """Uniform in +-1/sqrt(inputs)."""
    bound = math.prod(shape[: site.n_in]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _principal(w, rank: int, key):
    """The largest singular triplets, the roots of the values on both sides."""
    u, s, v = ranks.singular(w, rank, key)
    return u * jnp.sqrt(s)[..., None, :], jnp.sqrt(s)[..., :, None] * v


def _orthogonal(w, rank: int, key):
    """The first columns of Q and the first rows of R."""
    q, r = jnp.linalg.qr(w.astype(jnp.float32))
    return q[..., :rank], r[..., :rank, :]


STARTS = {"kaiming": None, "pissa": _principal, "olora": _orthogonal}
