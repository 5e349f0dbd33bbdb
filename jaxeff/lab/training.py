"""One training run of an ablation, and what is kept of it."""

import dataclasses
import math
import shutil
import time
from pathlib import Path
from typing import Any

from jaxeff.data import Prepared
from jaxeff.evaluate.scores import evaluate
from jaxeff.lab.progress import Progress
from jaxeff.train import progress as train_progress
from jaxeff.train.experiment import Experiment
from jaxeff.train.loop import Result, fit
from jaxeff.train.signals import on_signal


@dataclasses.dataclass(frozen=True)
class Part:
    """One training run of an ablation, named like its file: `lr-0.003` of the sweep, or `seed-0`, whose test split is read, and
    that of `others`."""

    model: str
    name: str
    experiment: Experiment
    split: str
    others: tuple[tuple[str, Prepared], ...] = ()

    @property
    def steps(self) -> int:
        """Its length."""
        return self.experiment.train.steps


class Relay(train_progress.Silent):
    """Tells an ablation's progress what one of its runs does."""

    def __init__(self, progress: Progress, part: Part):
        self.progress, self.part = progress, part

    def step(self, step: int, steps: int, line: dict[str, Any], verdict: str | None = None) -> None:
        self.progress.step(self.part, step, line["loss"], line["tokens_per_s"])

    def say(self, text: str) -> None:
        self.progress.say(text)


def train(part: Part, workdir: Path, prepared: Prepared, progress: Progress) -> dict[str, Any]:
    """Train and evaluate: {"score" on the part's split, None where training diverged; "steps", "losses", "seconds"}.

    A run of the sweep is deleted once it is evaluated; a final one stays, to be evaluated further or to generate from.

    Raises Stopped when a signal comes, after saving; UserError as `fit` does.
    """
    begun, e = time.perf_counter(), part.experiment
    with on_signal() as stop:
        result = fit(e, workdir, report=Relay(progress, part), stop=stop, prepared=prepared)
    if result.stopped:
        raise stop.stopped()
    steps, losses = curve(result.lines)
    score = result.score if part.split == "validation" else _test(e, result, prepared, part.split)
    if part.split == "validation":
        shutil.rmtree(workdir, ignore_errors=True)
    return {
        "score": None if diverged(result, score) else score,
        "validation": result.score,
        "others": {name: _test(e, result, theirs, "test") for name, theirs in part.others},
        "steps": steps,
        "losses": losses,
        "tokens": result.lines[-1]["tokens"],
        "seconds": time.perf_counter() - begun,
    }


def curve(lines: list[dict[str, Any]], points: int = 100) -> tuple[list[int], list[float]]:
    """(steps, losses) of a run's log, at most so many: each the mean over a window of logged steps, named by its last one."""
    lines = [line for line in lines if line["loss"] is not None]
    width = -(-len(lines) // points) or 1
    windows = [lines[i : i + width] for i in range(0, len(lines), width)]
    return [w[-1]["step"] for w in windows], [math.fsum(line["loss"] for line in w) / len(w) for w in windows]


def _test(e: Experiment, result: Result, prepared: Prepared, split: str) -> float:
    batches = prepared.eval(split)
    found = evaluate(e.objective, e.model, result.weights, batches, policy=e.policy, mesh=e.mesh.make())
    return found.scores[e.objective.score.name]


def diverged(result: Result, score: float | None) -> bool:
    """Whether a run failed: a non-finite evaluation, or a tenth of its steps skipped for a non-finite loss or gradient."""
    return score is None or not math.isfinite(score) or result.lines[-1]["skipped"] > result.step / 10
