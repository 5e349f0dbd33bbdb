"""Runs made of other runs by rewriting their weights: `jaxeff transform` and `jaxeff merge`.

What comes out is a run like any other, at step 0: it can be evaluated, trained further, and be the base of the next one. Frozen
weights lie in its own folder, as what they were made by (calibration, another run) may be gone.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.core.address import address
from jaxeff.core.errors import UserError, lookup
from jaxeff.core.files import write_json
from jaxeff.core.sharding import make_mesh
from jaxeff.core.spec import count
from jaxeff.core.tree import match, paths
from jaxeff.data.base import SPLITS
from jaxeff.evaluate.decoding import Decoding
from jaxeff.evaluate.scores import evaluate
from jaxeff.evaluate.timing import alternate, seconds
from jaxeff.train.checkpoint import Checkpoints, checksums, write_frozen
from jaxeff.train.experiment import Experiment
from jaxeff.train.kept import keep
from jaxeff.train.progress import Silent
from jaxeff.train.step import compiled
from jaxeff.train.trained import Trained, check_same, load_trained
from jaxeff.train.workdir import describe, locked, read_run
from jaxeff.transforms import merging
from jaxeff.transforms.calibrate import Evidence, calibrate
from jaxeff.transforms.distance import Distance, distances, overall, table
from jaxeff.transforms.node import Node
from jaxeff.transforms.plan import Transform, chain, planned, weights

CONTEXT, TOKENS, ROUNDS = 64, 32, 5  # of the decoding that is timed


@dataclasses.dataclass(frozen=True)
class Measured:
    """A model before or after. parameters: numbers that its weights consist of, whatever their width; trained: those that train;
    bytes: of all of them; bits: for each weight of the plain model; score: on the validation split, None where there is none;
    decode: seconds a token."""

    parameters: int
    trained: int
    bytes: int
    bits: float
    score: float | None
    decode: float


def transform(
    workdir, transforms: Sequence[Transform], out, *, calibrate: int = 0, report: Silent | None = None
) -> tuple[Measured, Measured, Experiment]:
    """The run of `workdir` with its weights transformed, as the run `out`; (before, after, its experiment). How far they lie from
    what they were is said through `report` of the farthest, and in run.json of all.

    calibrate: texts of the training split to look at, for transforms that lift by what goes into weights.

    Raises UserError where `workdir` holds no trained run or `out` one already, for transforms that do not fit its weights, and for
    those that need evidence where calibrate is 0.
    """
    report = report or Silent()
    run, whole = load_trained(workdir, report, splits=SPLITS), chain(*transforms)
    before = run.experiment
    check_free(out)
    # What does not fit is said before anything is computed.
    chain(*(one.at_any_rank() if hasattr(one, "settled") else one for one in transforms)).plan(
        before.specs, model=before.model
    )
    evidence = _evidence(run, whole, calibrate, report)
    report.stage("transforming", 0, 1)
    specs, params, chosen, key = before.specs, run.weights, [], jax.random.key(before.seed)
    for i, one in enumerate(transforms):
        chosen.append(one.settled(specs, params, evidence) if hasattr(one, "settled") else one)
        plan = planned(chosen[-1], specs, evidence, before.model)
        specs, params = plan.specs, plan.lift(params, jax.random.fold_in(key, i) if i else key)
    after = _of(before, transforms=(*before.transforms, *chosen), base=str(workdir))
    moved = distances(before.specs, run.weights, params)
    found = _written(run, after, params, out, report, {"distances": _stored(moved)} if moved else {})
    if moved:
        report.say(table(moved))
    return *found, after


def _stored(moved: Mapping[str, Distance]) -> dict[str, Any]:
    """The distances as JSON."""
    each = {path: {"largest": d.largest, "mean": d.mean} for path, d in moved.items()}
    return {"all together": overall(moved), "weights": each}


def merge(
    workdirs: Sequence[str],
    out,
    join: Callable[[Sequence[Any]], Any] | None = None,
    report: Silent | None = None,
) -> tuple[Measured, Measured, Experiment]:
    """The weights of runs of one model as plain arrays, joined by `join` where there are several, as the run `out`; (the first one
    before, after, its experiment).

    Raises UserError where a run cannot be merged or is of another model, and where `out` holds one already.
    """
    report = report or Silent()
    check_free(out)
    runs = [load_trained(workdir, report, splits=SPLITS) for workdir in workdirs]
    first = runs[0]
    for workdir, run in zip(workdirs[1:], runs[1:], strict=True):
        check_same(workdirs[0], first, workdir, run)
    plain = [run.experiment.weights.plan.merge(run.weights) for run in runs]
    if len(plain) > 1 and join is None:
        raise UserError("several runs need a way to be joined")
    after = _of(first.experiment, transforms=(), trainable=None, base=None)
    return *_written(first, after, plain[0] if join is None else join(plain), out, report), after


# How several runs become one: f(base's weights or None, runs' weights, numbers or None, key). Beside each, whether it needs a base.
JOINS: dict[str, tuple[bool, Callable[..., Any]]] = {
    "soup": (False, lambda base, trees, numbers, key: merging.soup(trees, numbers)),
    "slerp": (False, lambda base, trees, numbers, key: merging.slerp(*trees, *(numbers or [0.5]))),
    "ties": (True, lambda base, trees, numbers, key: merging.ties(base, trees, *(numbers or []))),
    "dare": (True, lambda base, trees, numbers, key: merging.dare(base, trees, key, scales=numbers)),
    "task_arithmetic": (
        True,
        lambda base, trees, numbers, key: merging.task_arithmetic(base, trees, numbers or [1.0] * len(trees)),
    ),
}


def joined(
    by: str | None, n: int, base: str | None, numbers: Sequence[float] | None, seed: int, report: Silent
) -> Callable[[Sequence[Any]], Any] | None:
    """How `merge` joins `n` runs, see `transforms.merging`; None for one run by itself.

    numbers: weights of a soup, scales of task arithmetic and dare, the share of the second run of slerp, density and scale of ties.

    Raises UserError for an unknown method, a base that is missing or of no use, and for too many or too few numbers or runs.
    """
    if by is None:
        if n > 1:
            raise UserError(f"{n} runs need a method: --by {', '.join(JOINS)}")
        if base is not None or numbers is not None:
            raise UserError(f"a base and scales belong to a method that joins runs: --by {', '.join(JOINS)}")
        return None
    needs_base, join = lookup(JOINS, by, "method")
    if needs_base != (base is not None):
        raise UserError(
            f"{by} needs the run that the others learned from: --base DIR" if needs_base else f"{by} takes no base"
        )
    if by == "slerp" and (n != 2 or len(numbers or [0]) != 1):
        raise UserError(f"slerp is between two runs and takes one number, found {n} runs and {numbers}")
    if by == "ties" and len(numbers or []) > 2:
        raise UserError(f"ties takes two numbers, density and scale, found {numbers}")
    theirs = None if base is None else load_trained(base, report)
    plain = None if theirs is None else theirs.experiment.weights.plan.merge(theirs.weights)
    return lambda trees: join(plain, trees, numbers, jax.random.key(seed))


def check_free(out) -> None:
    """Raises UserError where a folder holds a run already, or is none but in a store."""
    if address(out) is not None:
        raise UserError(f"{out} is in a store: a new run is written to a folder, which may be copied there")
    if read_run(out) is not None or (Path(out) / "checkpoints").exists():
        raise UserError(f"{out} holds a run already; name another folder")


def measured(experiments: Sequence[Experiment], values: Sequence[Any], prepared, report: Silent) -> list[Measured]:
    """What models cost and are worth, their decoding timed in turns."""
    scores, programs = [], []
    for e, params in zip(experiments, values, strict=True):
        scores.append(_score(e, params, prepared, report))
        bound = e.model.max_positions
        context = CONTEXT if bound is None else max(1, min(CONTEXT, bound - TOKENS))
        programs.append(Decoding(e.model, params, context, TOKENS, policy=e.policy))
    clocks = {i: functools.partial(seconds, program.further_tokens) for i, program in enumerate(programs)}
    times = alternate(clocks, ROUNDS)

    def one(i: int) -> Measured:
        e, leaves = experiments[i], paths(values[i])
        n_bytes = sum(x.size * x.dtype.itemsize for x in leaves.values())
        return Measured(
            parameters=sum(_numbers(w) for w in weights(e.specs).values()),
            trained=sum(x.size for path, x in leaves.items() if e.weights.trains(path)),
            bytes=n_bytes,
            bits=8 * n_bytes / count(e.model.specs()),
            score=scores[i],
            decode=median(times[i]) / TOKENS,
        )

    return [one(i) for i in range(len(experiments))]


def _score(e: Experiment, params, prepared, report: Silent) -> float | None:
    if "validation" not in prepared.splits:
        return None
    batches = prepared.eval("validation")
    return evaluate(e.objective, e.model, params, batches, policy=e.policy, report=report.stage).scores[
        e.objective.score.name
    ]


def _written(
    run: Trained, after: Experiment, params, out, report: Silent, more: Mapping[str, Any] = {}
) -> list[Measured]:
    """Writes the run `out`, with `more` in its run.json; what it was before, and what it is."""
    found = measured([run.experiment, after], [run.weights, params], run.prepared, report)
    write_run(out, after, run.prepared, params, more)
    return found


def write_run(out, experiment: Experiment, prepared, params, more: Mapping[str, Any] = {}) -> None:
    """A run at step 0 with these weights, as the folder `out`; `more` goes into its run.json."""
    step = compiled(experiment, make_mesh())
    trained, frozen = experiment.weights.split(params)
    scalars = jnp.uint32(experiment.seed), jnp.float32(experiment.optim.lr), jnp.int32(experiment.train.steps)
    with locked(Path(out)):
        if jax.tree.leaves(frozen):
            write_frozen(out, frozen)
        rows = prepared.train()
        record = {"step": 0, "tokens": 0, "seconds": 0.0, "data": rows.get_state(), "frozen": checksums(frozen)}
        rows.close()
        write_json(Path(out) / "run.json", describe(experiment, prepared, step.mesh) | more)
        keep(out, prepared)
        checkpoints = Checkpoints(out, experiment.objective.score, keep=experiment.train.keep)
        checkpoints.save(0, step.begin(trained, frozen, *scalars), record)
        checkpoints.wait()
        checkpoints.close()


def _numbers(weight: Any) -> int:
    """How many numbers a weight of Specs consists of: those that codes stand for, without scales and masks."""
    if not isinstance(weight, Node):
        return weight.size
    if weight.stage == "few bits":
        return weight.spec().size
    fields = {f.name: getattr(weight, f.name) for f in dataclasses.fields(weight)}
    inner = sum(_numbers(fields.pop(name)) for name in weight.parts)
    return inner + sum(x.size for x in jax.tree.leaves(fields) if hasattr(x, "axes") and x.dtype != jnp.bool_)


def _of(experiment: Experiment, **changes) -> Experiment:
    """An experiment whose weights come from elsewhere."""
    train = dataclasses.replace(experiment.train, init_from=None)
    return dataclasses.replace(experiment, train=train, **changes)


def _evidence(run: Trained, whole: chain, n: int, report: Silent) -> dict[str, Evidence] | None:
    """Of what the transforms need it for, from `n` texts of the training split."""
    if not whole.evidence:
        if n:
            report.say(f"none of these transforms looks at text: the {n} rows to calibrate by are not read")
        return None
    if n < 1:
        raise UserError(
            f"these transforms need to see text ({', '.join(whole.evidence)}): --calibrate 64, for 64 rows of it"
        )
    e, rows = run.experiment, run.prepared.train()
    known = weights(e.specs)
    found = {path for t in whole.transforms if getattr(t, "evidence", ()) for path in match(t.rules, known)}

    def loss(params, batch):
        return e.objective.loss(e.objective.sums(e.model, params, batch))

    n_batches = math.ceil(n / e.data.batch_size)

    def batches():
        for i, batch in enumerate(itertools.islice(rows, n_batches)):
            report.stage("looking at text", i + 1, n_batches)
            left = n - i * e.data.batch_size
            yield {name: x[:left] for name, x in batch.items()}

    try:
        return calibrate(loss, e.specs, run.weights, batches(), tuple(map(re.escape, sorted(found))), whole.evidence)
    finally:
        rows.close()
