"""What goes into each weight, seen on real text: the evidence that quantization and low rank by activations rest on.

A probe stands in a weight's place. It computes what the weight does, and its gradient with respect to an array of zeros beside the
weight is by definition the statistic of the inputs, such as sum x^T x. So one backward pass through the model as it is, under its
own scan and remat, yields the statistic of every layer, and nothing of the model has to know.

N rows (tokens) that reach a weight, I inputs, L stacked.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError, lookup
from jaxeff.core.tree import match
from jaxeff.core.weight import Weight, dense, einsum, take, terms
from jaxeff.transforms.node import spec_of
from jaxeff.transforms.plan import map_weights, weights

# name -> (trailing dimensions for I inputs, value of rows x [..., N, I], how values of two batches are joined). Rows that do not
# count are zero.
STATISTICS: dict[str, tuple[Callable, Callable, Callable]] = {
    "count": (lambda i: (), lambda x: jnp.full(x.shape[:-2], x.shape[-2], jnp.float32), jnp.add),
    "covariance": (lambda i: (i, i), lambda x: jnp.swapaxes(x, -1, -2) @ x, jnp.add),
    "absolute": (lambda i: (i,), lambda x: jnp.sum(jnp.abs(x), axis=-2), jnp.add),
    "largest": (lambda i: (i,), lambda x: jnp.max(jnp.abs(x), axis=-2), jnp.maximum),
}
FISHER = "fisher"  # is of the weight, not of its inputs


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The statistics of one weight, those that were asked for; float32.

    count: rows seen, [*L]. covariance: mean of x^T x, uncentred, [*L, I, I]. absolute, largest: mean and maximum of |x|, [*L, I].
    fisher: mean over texts of the squared gradient with respect to the weight, of the weight's shape.
    """

    count: jax.Array
    covariance: jax.Array | None = None
    absolute: jax.Array | None = None
    largest: jax.Array | None = None
    fisher: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Probe(Weight):
    """A weight, and zeros of the shape of each statistic of its inputs."""

    base: jax.Array | Weight
    zeros: dict[str, jax.Array]
    n_in: int = dataclasses.field(default=1, metadata={"static": True})
    n_out: int = dataclasses.field(default=1, metadata={"static": True})

    def dense(self, dtype) -> jax.Array:
        """The weight; nothing is seen."""
        return dense(self.base, dtype)

    def take(self, ids: jax.Array, dtype) -> jax.Array:
        """Its rows; nothing is seen."""
        return take(self.base, ids, dtype)

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """The product; x is seen where it comes in by the inputs."""
        n_stacked = self.zeros["count"].ndim
        if not terms(eqn, n_stacked, self.n_in).forward:
            return einsum(eqn, x, self.base)
        return _seen(eqn, n_stacked, self.n_in, x, self.base, self.zeros)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _seen(eqn: str, n_stacked: int, n_in: int, x: jax.Array, base, zeros):
    """The product."""
    return einsum(eqn, x, base)


def _seen_forward(eqn, n_stacked, n_in, x, base, zeros):
    return einsum(eqn, x, base), (x, base, zeros)


def _seen_backward(eqn, n_stacked, n_in, kept, dy):
    x, base, zeros = kept
    dx, dbase = jax.vjp(lambda x, base: einsum(eqn, x, base), x, base)[1](dy)
    t = terms(eqn, n_stacked, n_in)
    rest = t.without(t.stacked + t.inputs)
    rows = _rows(x, t.x, t.stacked, rest, t.inputs)
    # What no loss depends on, padding above all, is not seen.
    matters = jnp.any(_rows(dy, t.result, t.stacked, rest, t.outputs) != 0, axis=-1)
    rows = jnp.where(matters[..., None], rows.astype(jnp.float32), 0.0)
    values = {name: STATISTICS[name][1](rows) for name in zeros}
    values["count"] = jnp.sum(matters, axis=-1, dtype=jnp.float32)
    return dx, dbase, values


_seen.defvjp(_seen_forward, _seen_backward)


def _rows(x: jax.Array, letters: str, *groups: str) -> jax.Array:
    """x with its axes in the order of the groups, those of the last group as one, those of the second as one."""
    x = jnp.transpose(x, [letters.index(letter) for letter in "".join(groups)])
    stacked, inner = len(groups[0]), len(groups[-1])
    return x.reshape(*x.shape[:stacked], -1, math.prod(x.shape[x.ndim - inner :]))


def calibrate(
    loss: Callable[[Any, Any], jax.Array],
    specs,
    params,
    batches: Iterable[Any],
    rules: Sequence[str] = (".*",),
    statistics: Sequence[str] = ("covariance",),
) -> dict[str, Evidence]:
    """path -> Evidence of the matrices that `rules` match, from a stream of batches, one in memory at a time.

    loss(params, batch): any scalar that depends on what the model does with the batch; tokens on which it does not depend are not
    counted. statistics: names of fields of Evidence. "fisher" takes batches whose leaves have texts as their first dimension.

    Raises UserError for rules that match no matrix, for no batches, and for a weight that no token reached, or where a statistic
    is not finite.
    """
    for name in statistics:
        lookup(dict.fromkeys((*STATISTICS, FISHER)), name, "statistic")
    known = weights(specs)
    found = [path for path in match(rules, known, "rule of calibrate") if spec_of(known[path]).is_matrix]
    if not found:
        raise UserError(f"rules of calibrate match no matrix: {', '.join(map(repr, rules))}")
    names = dict.fromkeys(("count", *(name for name in statistics if name != FISHER)))

    def zeros(path: str) -> dict[str, jax.Array]:
        spec = spec_of(known[path])
        inputs = math.prod(spec.inputs)
        return {name: jnp.zeros((*spec.stacked, *STATISTICS[name][0](inputs))) for name in names}

    def probed(params, zeros):
        def one(path: str, weight):
            spec = spec_of(known[path])
            return Probe(weight, zeros[path], spec.n_in, len(spec.outputs)) if path in zeros else weight

        return map_weights(one, params)

    @functools.partial(jax.jit, donate_argnums=0)
    def see(sums, params, batch):
        values = jax.grad(lambda z: loss(probed(params, z), batch))({path: zeros(path) for path in found})
        return {
            path: {name: STATISTICS[name][2](sums[path][name], values[path][name]) for name in names} for path in found
        }

    @functools.partial(jax.jit, donate_argnums=0)
    def squares(sums, params, batch):
        chosen = {path: w for path, w in weights(params).items() if path in found}

        def one(text):
            text = jax.tree.map(lambda x: x[None], text)
            f = lambda chosen: loss(map_weights(lambda path, w: chosen.get(path, w), params), text)
            return jax.tree.map(jnp.square, jax.grad(f)(chosen))

        added, _ = jax.lax.scan(lambda s, text: (jax.tree.map(jnp.add, s, one(text)), None), sums, batch)
        return added

    sums, fisher, n_texts = {path: zeros(path) for path in found}, None, 0
    if FISHER in statistics:
        fisher = {path: jnp.zeros(spec_of(known[path]).shape) for path in found}
    n = 0
    for batch in batches:
        n += 1
        sums = see(sums, params, batch)
        if fisher is not None:
            fisher, n_texts = squares(fisher, params, batch), n_texts + len(jax.tree.leaves(batch)[0])
    if not n:
        raise UserError("calibrate was given no batches")
    return {path: _evidence(path, sums[path], None if fisher is None else fisher[path] / n_texts) for path in found}


def _evidence(path: str, sums: Mapping[str, jax.Array], fisher) -> Evidence:
    """Means of the sums."""
    count = sums["count"]
    if not bool(jnp.all(count > 0)):
        raise UserError(
            f"calibrate: no token reached {path}" + ("" if count.ndim == 0 else " in every one of its stack")
        )
    means = {"count": count} | ({} if fisher is None else {"fisher": fisher})
    for name, total in sums.items():
        if name == "largest":
            means[name] = total
        elif name != "count":
            means[name] = total / count.reshape(*count.shape, *(1,) * (total.ndim - count.ndim))
    for name, value in means.items():
        if not bool(jnp.all(jnp.isfinite(value))):
            raise UserError(f"calibrate: the {name} of {path} is not finite")
    return Evidence(**means)


def needed(method: str, statistics: Sequence[str], path: str, evidence: Mapping[str, Evidence] | None) -> Evidence:
    """The evidence of the weight at `path`. Raises UserError where it is not there, or lacks one of the statistics."""
    missing = path not in (evidence or {}) or any(getattr(evidence[path], name) is None for name in statistics)
    if missing:
        raise UserError(
            f"{method} needs the {' and the '.join(statistics)} of what goes into {path}:"
            f" plan(specs, evidence=calibrate(..., statistics={tuple(statistics)}))"
        )
    return evidence[path]
