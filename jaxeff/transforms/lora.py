"""Low-rank adapters (Hu et al. 2021, "LoRA"). R rank, I inputs, O outputs of a weight.

    y = x W + (alpha / R) (dropout(x) A) B        A [I, R] uniform in +-1/sqrt(I), B [R, O] zero: nothing changes at the start

A B is never formed but to merge. On a stack of layers A and B are stacked likewise.
"""

import dataclasses
import logging
import math
from zlib import crc32

import jax
import jax.numpy as jnp

from jaxeff.core.spec import Site, Spec, init, stack, zeros
from jaxeff.core.weight import Weight, dense, einsum, is_weight, take, terms
from jaxeff.mixers.base import dropout
from jaxeff.transforms.plan import Plan, float_dtype, map_weights, not_a_matrix, spec_of, targets, weights, within


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoRAWeight(Weight):
    """base + scale A B. base: any weight [*L, *I, *O]; a [*L, *I, R]; b [*L, R, *O]; key: of the dropout, None for none."""

    base: jax.Array | Weight
    a: jax.Array
    b: jax.Array
    key: jax.Array | None = None
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})
    n_in: int = dataclasses.field(default=1, metadata={"static": True})

    @property
    def n_stacked(self) -> int:
        """How many leading dimensions number equal weights."""
        return self.a.ndim - self.n_in - 1

    def dense(self, dtype) -> jax.Array:
        """base + scale A B."""
        n, rank = self.n_stacked, self.a.shape[-1]
        stacked, inputs, outputs = self.a.shape[:n], self.a.shape[n:-1], self.b.shape[n + 1 :]
        ab = jnp.matmul(self.a.reshape(*stacked, -1, rank), self.b.reshape(*stacked, rank, -1))
        ab = ab.reshape(*stacked, *inputs, *outputs)
        return dense(self.base, dtype) + (self.scale * ab).astype(dtype)

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """The base's product and that of the two narrow factors, in either direction."""
        t = terms(eqn, self.n_stacked, self.n_in)
        if not (t.forward or t.backward):
            return super().einsum(eqn, x)
        r = next(letter for letter in "rzyxwvutsq" if letter not in eqn)
        a, b = f"{t.stacked}{t.inputs}{r}", f"{t.stacked}{r}{t.outputs}"
        dropped = dropout(x, self.dropout, self.key)
        if t.forward:
            narrow = einsum(f"{t.x},{a}->{t.without(t.inputs)}{r}", dropped, self.a)
            update = einsum(f"{t.without(t.inputs)}{r},{b}->{t.result}", narrow, self.b)
        else:
            narrow = einsum(f"{t.x},{b}->{t.without(t.outputs)}{r}", dropped, self.b)
            update = einsum(f"{t.without(t.outputs)}{r},{a}->{t.result}", narrow, self.a)
        return einsum(eqn, x, self.base) + update * jnp.asarray(self.scale, update.dtype)

    def take(self, ids: jax.Array, dtype) -> jax.Array:
        """Rows of the base, and of A times B; without dropout, as there is no activation yet."""
        narrow = take(self.a, ids, dtype)
        update = jnp.tensordot(narrow, self.b.astype(dtype), axes=1)
        return take(self.base, ids, dtype) + update * jnp.asarray(self.scale, dtype)


def uniform(key, shape, dtype, site: Site):
    """Uniform in +-1/sqrt(inputs)."""
    bound = math.prod(shape[: site.n_in]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Adapters beside the weights that `rules` match, (regex, rank) on their paths; they alone train.

    A rank is at most what the weight allows, min(I, O); a larger one is lowered to that, and logged. alpha: the update's scale is
    alpha / rank. dropout: share of the adapter's inputs dropped in training.

    `plan` raises UserError for a rule that matches nothing or what is no matrix, for a weight that has an adapter already, and for
    a rank below 1.
    """

    rules: tuple[tuple[str, int], ...] = (("blocks/.*/mixer/(q|v)", 8),)
    alpha: float = 16.0
    dropout: float = 0.0

    def __post_init__(self):
        if not self.alpha > 0:
            raise ValueError(f"LoRA.alpha must be above 0, found {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA.dropout must lie in [0, 1), found {self.dropout}")
        for rule in self.rules:
            if not (isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[1], int) and rule[1] >= 1):
                raise ValueError(f"LoRA.rules are (regex, rank) with a rank of at least 1, found {rule!r}")

    def plan(self, specs) -> Plan:
        """See `transforms.plan.Plan`."""
        known = weights(specs)
        ranks = targets(specs, self.rules, "LoRA", _cannot)
        pairs = {path: _pair(path, spec_of(known[path]), rank) for path, rank in ranks.items()}

        def node(path: str, base, a, b) -> LoRAWeight:
            a_spec = pairs[path][0]
            return LoRAWeight(base, a, b, None, self.alpha / a_spec.shape[-1], self.dropout, a_spec.n_in)

        def adapt(path: str, weight):
            return node(path, weight, *pairs[path]) if path in pairs else weight

        def lift(params, key):
            def one(path: str, weight):
                if path not in pairs:
                    return weight
                values = init(dict(zip((f"{path}/a", f"{path}/b"), pairs[path])), key, float_dtype(weight))
                return node(path, weight, *values.values())

            return map_weights(one, params)

        def merge(params):
            return map_weights(lambda path, w: w.dense(w.a.dtype) if path in pairs and is_weight(w) else w, params)

        def seeded(params, key):
            def one(path: str, weight):
                if path not in pairs:
                    return weight
                own, stacked = jax.random.fold_in(key, crc32(path.encode())), weight.a.shape[: weight.n_stacked]
                return dataclasses.replace(weight, key=jax.random.split(own, stacked) if stacked else own)

            return map_weights(one, params) if self.dropout else params

        return Plan(
            map_weights(adapt, specs),
            lift,
            merge,
            adapters={f"{path}/{name}" for path in pairs for name in "ab"}.__contains__,
            frozen=within(pairs),
            seeded=seeded,
        )


def _pair(path: str, spec: Spec, rank: int) -> tuple[Spec, Spec]:
    """The Specs of A and B."""
    largest = min(math.prod(spec.inputs), math.prod(spec.outputs))
    if rank > largest:
        logging.getLogger("jaxeff").warning("LoRA: %s has rank %d at most; %d was asked for", path, largest, rank)
        rank = largest
    axes = spec.axes[spec.n_stacked :]
    a = Spec((*spec.inputs, rank), (*axes[: spec.n_in], "rank"), uniform, n_in=spec.n_in)
    b = Spec((rank, *spec.outputs), ("rank", *axes[spec.n_in :]), zeros)
    for size, axis in zip(reversed(spec.stacked), reversed(spec.axes[: spec.n_stacked])):
        a, b = stack((a, b), size, axis=axis)
    return a, b


def _cannot(weight) -> str | None:
    if isinstance(weight, LoRAWeight):
        return "which has an adapter already"
    return not_a_matrix(weight)
