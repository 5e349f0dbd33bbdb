"""What an ablation shows while it runs: which model, which run of how many, step, loss, tokens/s and the time left.

`Progress` shows nothing, `Lines` prints plain lines, `Bars` draws two bars on a terminal: the ablation's and the current run's.
Work is counted in training steps; the time left follows from the steps that were done so far.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Counts the work and shows nothing: the base of the others."""

    def __init__(self):
        self.n_parts = self.n_done = 0
        self.steps_total = self.steps_done = self.steps_skipped = self.steps_for_costs = 0
        self.begun = time.perf_counter()

    @contextlib.contextmanager
    def running(self, n_parts: int, n_steps: int, for_costs: int) -> Iterator[None]:
        """For the time of the ablation: number of runs, steps of all of them, and the work of measuring costs, as steps."""
        self.n_parts, self.steps_total, self.steps_for_costs = n_parts, n_steps + for_costs, for_costs
        self.begun = time.perf_counter()
        with self._shown():
            yield

    @contextlib.contextmanager
    def _shown(self):
        yield

    def stage(self, text: str, done: int, total: int) -> None:
        """Something that is no training run: preparing the data, measuring costs."""

    def costs(self, text: str, done: int, total: int) -> None:
        """A stage of measuring the costs."""
        self.stage(f"{text}, {self.left(self.steps_for_costs * done // max(1, total))} left", done, total)

    def skip(self, part) -> None:
        """A run that was finished before."""
        self.n_done += 1
        self.steps_done += part.steps
        self.steps_skipped += part.steps

    def begin(self, part) -> None:
        """A run starts."""
        self.n_done += 1

    def step(self, part, step: int, loss: float, tokens_per_s: float | None) -> None:
        """A run has done `step` steps."""

    def end(self, part, result: dict[str, Any]) -> None:
        """A run is finished."""
        self.steps_done += part.steps

    def say(self, text: str) -> None:
        """One line that stays."""

    def left(self, extra: int = 0) -> str:
        """How long it will still take, as text; `extra` steps of the current run are done."""
        fresh = self.steps_done + extra - self.steps_skipped
        if fresh <= 0:
            return "?"
        seconds = (time.perf_counter() - self.begun) * max(0, self.steps_total - self.steps_done - extra) / fresh
        return clock(seconds)


def clock(seconds: float) -> str:
    """ "3:05" """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


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

    def skip(self, part) -> None:
        super().skip(part)
        self.say(f"{self._head(part)} was finished before")

    def begin(self, part) -> None:
        super().begin(part)
        self.say(f"{self._head(part)} {part.steps} steps, lr {part.experiment.optim.lr:g}, seed {part.experiment.seed}")

    def step(self, part, step: int, loss: float, tokens_per_s: float | None) -> None:
        if time.perf_counter() - self.last > self.every:
            speed = "" if tokens_per_s is None else f" {tokens_per_s:,.0f} tokens/s"
            self.say(f"{self._head(part)} step {step} of {part.steps} loss {loss:.3f}{speed}, {self.left(step)} left")

    def end(self, part, result: dict[str, Any]) -> None:
        super().end(part, result)
        self.say(f"{self._head(part)} {outcome(part, result)} in {result['seconds']:.0f} s, {self.left()} left")

    def _head(self, part) -> str:
        return f"[{self.n_done}/{self.n_parts}] {part.model} {part.name}:"


def outcome(part, result: dict[str, Any]) -> str:
    """The number that a run was for."""
    value = result["bits_per_byte"]
    return "diverged" if value is None else f"{part.split} {value:.4f} bits per byte"


class Bars(Progress):
    """Two bars on a terminal, with the finished runs as lines above them."""

    def __init__(self, console: Console | None = None):
        super().__init__()
        self.console = console or Console()
        self.bars = RichProgress(
            SpinnerColumn(), TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[note]}"),
            console=self.console, transient=True, refresh_per_second=4,
        )  # fmt: skip
        self.whole = self.bars.add_task("", total=None, note="", visible=False)
        self.now = self.bars.add_task("", total=None, note="", visible=False)

    @contextlib.contextmanager
    def _shown(self):
        self.bars.update(self.whole, description="ablation", total=self.steps_total, visible=True)
        with self.bars:
            yield

    def say(self, text: str) -> None:
        self.bars.console.print(text, highlight=False)

    def stage(self, text: str, done: int, total: int) -> None:
        self.bars.start()
        self.bars.update(self.now, description=text, completed=done, total=total, note="", visible=True)

    def costs(self, text: str, done: int, total: int) -> None:
        self.stage(text, done, total)
        self._whole(self.steps_for_costs * done // max(1, total))

    def skip(self, part) -> None:
        super().skip(part)
        self._whole()

    def begin(self, part) -> None:
        super().begin(part)
        self.bars.update(
            self.now,
            description=f"{part.model} {part.name}",
            completed=0,
            total=part.steps,
            note="compiling",
            visible=True,
        )
        self._whole()

    def step(self, part, step: int, loss: float, tokens_per_s: float | None) -> None:
        speed = "" if tokens_per_s is None else f"  {tokens_per_s:,.0f} tokens/s"
        self.bars.update(self.now, completed=step, note=f"step {step}/{part.steps}  loss {loss:.3f}{speed}")
        self._whole(step)

    def end(self, part, result: dict[str, Any]) -> None:
        super().end(part, result)
        self.say(f"[dim][{self.n_done}/{self.n_parts}][/dim] {part.model} {part.name}: {outcome(part, result)}")
        self._whole()

    def _whole(self, extra: int = 0):
        note = f"run {self.n_done} of {self.n_parts}  {self.left(extra)} left"
        self.bars.update(self.whole, completed=self.steps_done + extra, note=note)


def shown(console: Console | None = None) -> Progress:
    """Bars on a terminal, plain lines elsewhere."""
    console = console or Console()
    return Bars(console) if console.is_terminal else Lines(console.file)
