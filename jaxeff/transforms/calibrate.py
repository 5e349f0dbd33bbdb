"""What goes into each weight, seen on real text: the evidence that quantization and low rank by activations rest on.

A probe stands in a weight's place. It computes what the weight does, and its gradient with respect to a zero beside the weight is
by definition how many rows came in. So one backward pass through the model as it is, under its own scan and remat, passes every
layer, and nothing of the model has to know. On its way each layer hands its statistics, such as sum x^T x, to the host, which adds
them up: the device holds those of one layer at a time, where a gradient would hold all of them, which are larger than the model.

N rows (tokens) that reach a weight, I inputs, L stacked.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from jaxeff.core.errors import UserError, lookup
from jaxeff.core.tree import match
from jaxeff.core.weight import Weight, dense, einsum, take, terms
from jaxeff.transforms.node import spec_of
from jaxeff.transforms.plan import map_weights, weights

# name -> (trailing dimensions for I inputs, value of rows x [..., N, I], how values of two batches are joined). Rows that do not
# count are zero.
STATISTICS: dict[str, tuple[Callable, Callable, np.ufunc]] = {
    "covariance": (lambda i: (i, i), lambda x: jnp.swapaxes(x, -1, -2) @ x, np.add),
    "absolute": (lambda i: (i,), lambda x: jnp.sum(jnp.abs(x), axis=-2), np.add),
    "largest": (lambda i: (i,), lambda x: jnp.max(jnp.abs(x), axis=-2), np.maximum),
}
FISHER = "fisher"  # is of the weight, not of its inputs


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The statistics of one weight, those that were asked for; float32, on the host.

    count: rows seen, [*L]. covariance: mean of x^T x, uncentred, [*L, I, I]. absolute, largest: mean and maximum of |x|, [*L, I].
    fisher: mean over texts of the squared gradient with respect to the weight, of the weight's shape.
    """

    count: np.ndarray
    covariance: np.ndarray | None = None
    absolute: np.ndarray | None = None
    largest: np.ndarray | None = None
    fisher: np.ndarray | None = None


class Sums:
    """What has been seen of one weight: a sum or a maximum of each statistic, of every member of its stack. Adds in any order."""

    def __init__(self, names: Iterable[str], stacked: tuple[int, ...], inputs: int):
        self.stacked = stacked
        flat = {name: (math.prod(stacked), *STATISTICS[name][0](inputs)) for name in names}
        self.totals = {name: np.zeros(shape, np.float32) for name, shape in flat.items()}

    def add(self, place, values: Mapping[str, Any]):
        """place: numbers of members of the stack, [*L]. values: name -> [*L, ...] of these."""
        place = np.asarray(place).reshape(-1)
        for name, value in values.items():
            total, value = self.totals[name], np.asarray(value)
            for i, one in zip(place, value.reshape(-1, *total.shape[1:]), strict=True):
                STATISTICS[name][2](total[i], one, out=total[i, ...])

    def means(self, count: np.ndarray) -> dict[str, np.ndarray]:
        """Each in the form that Evidence has; the sums are used up."""
        for name, total in self.totals.items():
            if STATISTICS[name][2] is np.add:
                total /= count.reshape(-1, *(1,) * (total.ndim - 1))
        return {name: total.reshape(*self.stacked, *total.shape[1:]) for name, total in self.totals.items()}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Probe(Weight):
    """A weight, a zero for each member of its stack, and the member's number."""

    base: jax.Array | Weight
    zero: jax.Array
    place: jax.Array
    sums: Sums = dataclasses.field(metadata={"static": True})
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
        if not terms(eqn, self.zero.ndim, self.n_in).forward:
            return einsum(eqn, x, self.base)
        return _seen(eqn, self.n_in, self.sums, x, self.base, self.zero, self.place)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _seen(eqn: str, n_in: int, sums: Sums, x: jax.Array, base, zero, place):
    """The product."""
    return einsum(eqn, x, base)


def _seen_forward(eqn, n_in, sums, x, base, zero, place):
    return einsum(eqn, x, base), (x, base, place)


def _seen_backward(eqn, n_in, sums, kept, dy):
    x, base, place = kept
    dx, dbase = jax.vjp(lambda x, base: einsum(eqn, x, base), x, base)[1](dy)
    t = terms(eqn, place.ndim, n_in)
    rest = t.without(t.stacked + t.inputs)
    rows = _rows(x, t.x, t.stacked, rest, t.inputs)
    # What no loss depends on, padding above all, is not seen.
    matters = jnp.any(_rows(dy, t.result, t.stacked, rest, t.outputs) != 0, axis=-1)
    rows = jnp.where(matters[..., None], rows.astype(jnp.float32), 0.0)
    io_callback(sums.add, None, place, {name: STATISTICS[name][1](rows) for name in sums.totals})
    return dx, dbase, jnp.sum(matters, axis=-1, dtype=jnp.float32), None


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
    members = {path: spec_of(known[path]) for path in found}
    names = [name for name in dict.fromkeys(statistics) if name != FISHER]
    sums = {path: Sums(names, spec.stacked, math.prod(spec.inputs)) for path, spec in members.items()}

    see = seeing(loss, members, sums)

    @functools.partial(jax.jit, donate_argnums=0)
    def squares(sums, params, batch):
        chosen = {path: w for path, w in weights(params).items() if path in members}

        def one(text):
            text = jax.tree.map(lambda x: x[None], text)
            f = lambda chosen: loss(map_weights(lambda path, w: chosen.get(path, w), params), text)
            return jax.tree.map(jnp.square, jax.grad(f)(chosen))

        added, _ = jax.lax.scan(lambda s, text: (jax.tree.map(jnp.add, s, one(text)), None), sums, batch)
        return added

    counts = {path: np.zeros(spec.stacked, np.float32) for path, spec in members.items()}
    fisher, n_texts = None, 0
    if FISHER in statistics:
        fisher = {path: jnp.zeros(spec.shape) for path, spec in members.items()}
    n = 0
    for batch in batches:
        n += 1
        counts = jax.tree.map(np.add, counts, jax.device_get(see(params, batch)))
        jax.effects_barrier()
        if fisher is not None:
            fisher, n_texts = squares(fisher, params, batch), n_texts + len(jax.tree.leaves(batch)[0])
    if not n:
        raise UserError("calibrate was given no batches")
    return {
        path: _evidence(path, counts[path], sums[path], None if fisher is None else fisher[path] / n_texts)
        for path in found
    }


def seeing(loss: Callable, members: Mapping[str, Any], sums: Mapping[str, Sums]) -> Callable:
    """see(params, batch) -> {path: rows seen [*L]}, which adds what was seen to `sums`. members: path -> spec."""

    def probed(params, zeros):
        def one(path: str, weight):
            if path not in zeros:
                return weight
            stacked, spec = zeros[path].shape, members[path]
            place = jnp.arange(math.prod(stacked), dtype=jnp.int32).reshape(stacked)
            return Probe(weight, zeros[path], place, sums[path], spec.n_in, len(spec.outputs))

        return map_weights(one, params)

    @jax.jit
    def see(params, batch):
        zeros = {path: jnp.zeros(spec.stacked) for path, spec in members.items()}
        return jax.grad(lambda zeros: loss(probed(params, zeros), batch))(zeros)

    return see


def _evidence(path: str, count: np.ndarray, sums: Sums, fisher) -> Evidence:
    """Means of the sums, which are used up."""
    if not np.all(count > 0):
        raise UserError(
            f"calibrate: no token reached {path}" + ("" if count.ndim == 0 else " in every one of its stack")
        )
    means = sums.means(count) | ({} if fisher is None else {"fisher": np.asarray(fisher)})
    for name, value in means.items():
        if not np.all(np.isfinite(value)):
            raise UserError(f"calibrate: the {name} of {path} is not finite")
    return Evidence(count, **means)


def needed(method: str, statistics: Sequence[str], path: str, evidence: Mapping[str, Evidence] | None) -> Evidence:
    """The evidence of the weight at `path`. Raises UserError where it is not there, or lacks one of the statistics."""
    missing = path not in (evidence or {}) or any(getattr(evidence[path], name) is None for name in statistics)
    if missing:
        raise UserError(
            f"{method} needs the {' and the '.join(statistics)} of what goes into {path}:"
            f" plan(specs, evidence=calibrate(..., statistics={tuple(statistics)}))"
        )
    return evidence[path]
