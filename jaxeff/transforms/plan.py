"""What a transform is going to do to the weights of one model: other Specs, and how values go there and back.

Rules address *weights* by path: `blocks/0/mixer/q` is called so whatever it has become, an array, int8 codes with a scale, or an
adapter around either. What a transform makes of a weight is a node (see `core.weight`), whose leaves have paths of their own,
`blocks/0/mixer/q/base/codes`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax

from jaxeff.core.errors import UserError
from jaxeff.core.spec import Spec
from jaxeff.core.tree import map_with_path, match, paths
from jaxeff.core.weight import dense, is_weight
from jaxeff.transforms.node import STAGES, float_dtype, nodes_of, spec_of


def nowhere(path: str) -> bool:
    """No path at all."""
    return False


@dataclasses.dataclass(frozen=True)
class Plan:
    """A transform of the weights that it was planned for.

    specs: matched Specs have become nodes of Specs; init, shardings and checkpoint targets go on working. lift(params, key): values
    of the model before to values of the one after; their structure is that of `abstract(specs)`; one that factorizes is not to be
    jitted on a CPU, where it may never end. merge(params): back to plain
    arrays. adapters(path): leaves that were added to be trained. frozen(path): leaves that cannot be. seeded(params, key): values
    whose random parts (an adapter's dropout) draw from `key`, for one training step. rate(path): how many times the learning rate
    the leaf has. penalty(params): float32, what is added to the loss, None for nothing. memory(trained): what the transform keeps
    between steps, and after(trained, gradients, memory, step, steps) -> (trained, memory): what it does when the optimizer has
    made step `step` of `steps`; both see the trained leaves, None elsewhere.
    """

    specs: Any
    lift: Callable[[Any, jax.Array], Any]
    merge: Callable[[Any], Any]
    adapters: Callable[[str], bool] = nowhere
    frozen: Callable[[str], bool] = nowhere
    seeded: Callable[[Any, jax.Array], Any] = lambda params, key: params
    rate: Callable[[str], float] = lambda path: 1.0
    penalty: Callable[[Any], jax.Array] | None = None
    memory: Callable[[Any], Any] = lambda params: None
    after: Callable[..., tuple[Any, Any]] = lambda params, grads, memory, step, steps: (params, memory)

    def trains(self, path: str) -> bool:
        """Whether the leaf at `path` trains: adapters alone where there are any, else whatever can."""
        return self.adapters(path) or not (self.has_adapters or self.frozen(path))

    @functools.cached_property
    def has_adapters(self) -> bool:
        """Whether leaves were added to be trained."""
        return any(map(self.adapters, paths(self.specs)))


class Transform(Protocol):
    """A frozen dataclass of settings.

    One that lifts by what goes into the weights has a tuple `evidence` of the statistics it needs (see `calibrate`), and its `plan`
    takes a second argument, path -> Evidence; without it the plan has all but `lift`. One with `needs_model` is given the model.
    """

    def plan(self, specs) -> Plan:
        """Raises UserError for rules that match nothing, or weights that it cannot transform."""


def planned(transform: Transform, specs, evidence: Mapping[str, Any] | None = None, model: Any = None) -> Plan:
    """`transform.plan(specs)`, with the evidence and the model if it needs them."""
    more = {"evidence": evidence} if getattr(transform, "evidence", ()) else {}
    more |= {"model": model} if getattr(transform, "needs_model", False) else {}
    return transform.plan(specs, **more)


@dataclasses.dataclass(frozen=True)
class chain:
    """Transforms one after the other, as one. Rules match the same paths in all of them."""

    transforms: tuple[Transform, ...]

    def __init__(self, *transforms: Transform):
        object.__setattr__(self, "transforms", transforms)

    @property
    def evidence(self) -> tuple[str, ...]:
        """The statistics that any of them needs."""
        return tuple(dict.fromkeys(name for t in self.transforms for name in getattr(t, "evidence", ())))

    @property
    def needs_model(self) -> bool:
        """Whether any of them needs the model."""
        return any(getattr(t, "needs_model", False) for t in self.transforms)

    def plan(self, specs, evidence: Mapping[str, Any] | None = None, model: Any = None) -> Plan:
        """The plan of the first, of the second on what the first makes of the Specs, and so on."""
        plans: list[Plan] = []
        for transform in self.transforms:
            plans.append(planned(transform, plans[-1].specs if plans else specs, evidence, model))

        def lift(params, key):
            for i, plan in enumerate(plans):
                params = plan.lift(params, jax.random.fold_in(key, i) if i else key)
            return params

        def merge(params):
            for plan in reversed(plans):
                params = plan.merge(params)
            return params

        def seeded(params, key):
            for plan in plans:
                params = plan.seeded(params, key)
            return params

        penalties = [plan.penalty for plan in plans if plan.penalty is not None]

        def after(params, grads, memory, step, steps):
            kept = []
            for plan, own in zip(plans, memory or (None,) * len(plans), strict=True):
                params, own = plan.after(params, grads, own, step, steps)
                kept.append(own)
            return params, _unless_empty(kept)

        return Plan(
            specs=plans[-1].specs if plans else specs,
            lift=lift,
            merge=merge,
            adapters=lambda path: any(plan.adapters(path) for plan in plans),
            frozen=lambda path: any(plan.frozen(path) for plan in plans),
            seeded=seeded,
            rate=lambda path: math.prod(plan.rate(path) for plan in plans),
            penalty=(lambda params: sum(penalty(params) for penalty in penalties)) if penalties else None,
            memory=lambda params: _unless_empty([plan.memory(params) for plan in plans]),
            after=after,
        )


def _unless_empty(memories: Sequence[Any]) -> tuple[Any, ...] | None:
    """A tuple, None if it holds nothing."""
    return tuple(memories) if jax.tree.leaves(memories) else None


def weights(tree) -> dict[str, Any]:
    """path -> weight, an array or Spec or a whole node."""
    return paths(tree, is_leaf=is_weight)


def map_weights(f: Callable[[str, Any], Any], tree):
    """The tree with `f(path, weight)` in place of each weight."""
    return map_with_path(f, tree, is_leaf=is_weight)


def within(weight_paths) -> Callable[[str], bool]:
    """Whether a leaf is one of these weights, or lies in one."""
    prefixes = tuple(f"{path}/" for path in weight_paths)
    return lambda path: f"{path}/".startswith(prefixes)


def targets(
    specs, rules: Sequence, method: str, stage: str, unfit: Callable[[Spec], str | None], default: Any = None
) -> dict[str, Any]:
    """path -> setting of the weights that `rules` match, `default` for a rule without one. stage: that of the nodes which `method`
    makes, see `node.STAGES`. unfit: why the Spec of a plain weight cannot be transformed, or None.

    Raises UserError for rules that match nothing and for a matched weight that cannot be transformed.
    """
    if not rules:
        raise UserError(f"{method} has no rules: name the weights, such as rules=('blocks/.*/mixer/q',)")
    known = weights(specs)
    found = match(rules, known, f"rule of {method}")
    for path in found:
        reason = unfit(spec_of(known[path])) or misplaced(known[path], method, stage)
        if reason is not None:
            raise UserError(f"{method} matches {path!r}, which {reason}")
    return {path: default if setting is None else setting for path, setting in found.items()}


def misplaced(weight, method: str, stage: str) -> str | None:
    """Why a transform cannot come after those that made `weight`, and what order works; None if it can."""
    order = list(STAGES)
    inside = list(nodes_of(weight))
    later = next((node for node in inside if order.index(node.stage) >= order.index(stage)), None)
    if later is None:
        return None
    reason = f"{STAGES[later.stage]} already"
    if later.stage == stage:
        return f"{reason} ({later.maker()})"
    return f"{reason}; the other order works: chain({method}(...), {later.maker()}(...))"


def not_a_matrix(spec: Spec) -> str | None:
    """Why low-rank and per-channel methods cannot take a weight, or None."""
    return None if spec.is_matrix else f"is no matrix (shape {spec.shape}, n_in={spec.n_in})"


def rewriting(
    specs,
    nodes: Mapping[str, Any],
    fill: Callable[[str, Any, jax.Array], Any],
    adapters: Sequence[str] | None = None,
    **more,
) -> Plan:
    """The plan of a method that turns the weights at some paths into nodes.

    nodes: path -> node of Specs. fill(path, weight, key) -> node of values. adapters: fields of the nodes that were added to be
    trained; all else in them is frozen. None: the nodes train as the weights did.
    """

    def lift(params, key):
        return map_weights(lambda path, w: _done(fill(path, w, key)) if path in nodes else w, params)

    def merge(params):
        return map_weights(lambda path, w: dense(w, float_dtype(w)) if path in nodes and is_weight(w) else w, params)

    if adapters is not None:
        more |= {"adapters": within(f"{path}/{name}" for path in nodes for name in adapters), "frozen": within(nodes)}
    return Plan(map_weights(lambda path, w: nodes.get(path, w), specs), lift, merge, **more)


def _done(weight):
    """The weight, once its values are there, so that the next one begins after it: on a CPU with few cores, factorizations at the
    same time can wait for each other for ever. A traced weight is returned as it is."""
    return (
        weight
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(weight))
        else jax.block_until_ready(weight)
    )


def specs_of(params, n_in: int | Sequence[tuple[str, int]] = 1, n_stacked: int | Sequence[tuple[str, int]] = 0):
    """Specs of somebody else's parameter tree, so that transforms can be planned on it.

    n_in, n_stacked: one number for all arrays, or (regex, number) rules on their paths; an array alone does not say how many of its
    dimensions are inputs, nor whether the first ones number layers. Arrays that a rule does not match, or of too few dimensions,
    have none. Raises UserError for a rule that matches nothing.
    """
    shapes = {path: leaf.shape for path, leaf in paths(params).items()}

    def numbers(setting) -> dict[str, int]:
        return dict.fromkeys(shapes, setting) if isinstance(setting, int) else match(setting, shapes)

    inputs, stacked = numbers(n_in), numbers(n_stacked)

    def one(path: str, leaf) -> Spec:
        outer, n = stacked.get(path, 0), inputs.get(path, 0)
        n = n if outer + n < len(leaf.shape) else 0
        return Spec(leaf.shape, (None,) * len(leaf.shape), dtype=leaf.dtype, n_in=n, n_stacked=outer)

    return map_with_path(one, params)
