"""What an ablation shows while it runs: which model, which run of how many, step, loss, tokens/s and the time left.

`Progress` shows nothing, `Lines` prints plain lines, `Bars` draws two bars on a terminal: the ablation's and the current run's.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as RichProgress

from jaxeff.lab.estimate import Estimate, clock


class Progress:
    """Counts the work and shows nothing: the base of the others."""

    def __init__(self):
        self.n_parts = self.n_done = self.for_costs = 0
        self.estimate = Estimate()

    @contextlib.contextmanager
    def running(self, n_parts: int, steps: int, models: int, for_costs: int) -> Iterator[None]:
        """For the time of the ablation: number of runs, their steps, models to train, and models whose costs to measure."""
        self.n_parts, self.for_costs = n_parts, for_costs
        self.estimate = Estimate(steps, models + for_costs)
        with self._shown():
            yield

    @contextlib.contextmanager
    def _shown(self):
        yield

    def close(self) -> None:
        """Nothing more will be shown."""

    @property
    def left(self) -> str:
        """The time left, as text."""
        return clock(self.estimate.left())

    def stage(self, text: str, done: int, total: int) -> None:
        """Something that is no training run: preparing the data, measuring costs."""

    def costs(self, text: str, done: int, total: int) -> None:
        """A stage of measuring the costs, which come last."""
        self.estimate.compilations = self.for_costs * (1 - done / max(1, total))
        self.stage(text, done, total)

    def skip(self, part) -> None:
        """A run that was finished before."""
        self.n_done += 1
        self.estimate.skip(part.steps)

    def grow(self, part) -> None:
        """A run more than was known is to be done: a sweep widens."""
        self.n_parts += 1
        self.estimate.grow(part.steps)

    def begin(self, part) -> None:
        """A run starts."""
        self.n_done += 1
        self.estimate.begin(part.model)

    def step(self, part, step: int, loss: float | None, tokens_per_s: float | None) -> None:
        """A run has done `step` steps."""
        self.estimate.step(step)

    def end(self, part, result: dict[str, Any]) -> None:
        """A run is finished."""
        self.estimate.end(part.steps)

    def say(self, text: str) -> None:
        """One line that stays."""


def doing(part, step: int, loss: float | None, tokens_per_s: float | None) -> str:
    """A step in words; a loss of None is one that is not finite."""
    speed = "" if tokens_per_s is None else f"  {tokens_per_s:,.0f} tokens/s"
    return f"step {step} of {part.steps}  loss {'not finite' if loss is None else f'{loss:.3f}'}{speed}"


def outcome(part, result: dict[str, Any]) -> str:
    """The number that a run was for."""
    value = result["score"]
    return "diverged" if value is None else f"{part.split} {part.experiment.objective.score.describe(value)}"


class Lines(Progress):
    """Plain lines: one for the start and end of each run, and one every few seconds between."""

    def __init__(self, out: TextIO | None = None, every: float = 10.0):
        super().__init__()
        self.out, self.every, self.last, self.text = out or sys.stdout, every, 0.0, ""

    def say(self, text: str) -> None:
        print(text, file=self.out, flush=True)
        self.last = time.perf_counter()

    def stage(self, text: str, done: int, total: int) -> None:
        if text != self.text or time.perf_counter() - self.last > self.every:
            self.text = text
            self.say(f"{text} ({done:,} of {total:,})" if total > 1 else text)

    def costs(self, text: str, done: int, total: int) -> None:
        super().costs(f"{text}  {self.left} left", done, total)

    def skip(self, part) -> None:
        super().skip(part)
        self.say(f"{self._head(part)} was finished before")

    def begin(self, part) -> None:
        super().begin(part)
        self.say(f"{self._head(part)} {part.steps} steps, lr {part.experiment.optim.lr:g}, seed {part.experiment.seed}")

    def step(self, part, step: int, loss: float | None, tokens_per_s: float | None) -> None:
        super().step(part, step, loss, tokens_per_s)
        if time.perf_counter() - self.last > self.every:
            self.say(f"{self._head(part)} {doing(part, step, loss, tokens_per_s)}  {self.left} left")

    def end(self, part, result: dict[str, Any]) -> None:
        super().end(part, result)
        self.say(f"{self._head(part)} {outcome(part, result)} in {result['seconds']:.0f} s  {self.left} left")

    def _head(self, part) -> str:
        return f"[{self.n_done}/{self.n_parts}] {part.model} {part.name}:"


class Bars(Progress):
    """Two bars on a terminal, with the finished runs as lines above them."""

    def __init__(self, console: Console | None = None):
        super().__init__()
        columns = (
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
        )
        self.bars = RichProgress(*columns, console=console or Console(), transient=True, refresh_per_second=4)
        self.whole = self.bars.add_task("ablation", total=None, note="", visible=False)
        self.now = self.bars.add_task("", total=None, note="", visible=False)

    @contextlib.contextmanager
    def _shown(self):
        self.bars.update(self.whole, total=self.n_parts + self.for_costs, visible=True)
        with self.bars:
            yield

    def close(self) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        self.bars.console.print(text, highlight=False, markup=False)

    def stage(self, text: str, done: int, total: int) -> None:
        self.bars.start()
        self.bars.update(self.now, description=text, completed=done, total=total, note="", visible=True)

    def costs(self, text: str, done: int, total: int) -> None:
        super().costs(text, done, total)
        self._whole(self.n_parts + self.for_costs * done / max(1, total))

    def skip(self, part) -> None:
        super().skip(part)
        self._whole(self.n_done)

    def grow(self, part) -> None:
        super().grow(part)
        self.bars.update(self.whole, total=self.n_parts + self.for_costs)

    def begin(self, part) -> None:
        super().begin(part)
        self.bars.update(
            self.now, description=f"{part.model} {part.name}", completed=0, total=part.steps, note="", visible=True
        )
        self._whole(self.n_done - 1)

    def step(self, part, step: int, loss: float | None, tokens_per_s: float | None) -> None:
        super().step(part, step, loss, tokens_per_s)
        self.bars.update(self.now, completed=step, note=doing(part, step, loss, tokens_per_s))
        self._whole(self.n_done - 1 + step / part.steps)

    def end(self, part, result: dict[str, Any]) -> None:
        super().end(part, result)
        self.say(
            f"[{self.n_done}/{self.n_parts}] {part.model} {part.name}: {outcome(part, result)} in {result['seconds']:.0f} s"
        )
        self._whole(self.n_done)

    def _whole(self, completed: float):
        self.bars.update(self.whole, completed=completed, note=f"run {self.n_done} of {self.n_parts}  {self.left} left")


def shown(console: Console | None = None) -> Progress:
    """Bars on a terminal, plain lines elsewhere."""
    console = console or Console()
    return Bars(console) if console.is_terminal else Lines(console.file)
