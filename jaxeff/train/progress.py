"""What a run shows while it goes on: rich on a terminal, plain lines elsewhere, or nothing.

Data preparation and evaluation call `stage`, the loop calls `step` after each step, and both `say` what should stay.
"""

import sys
import time
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from jaxeff.core.errors import warn


class Silent:
    """Shows nothing; the base of the others."""

    def stage(self, text: str, done: int, total: int) -> None:
        """`done` of `total` of something beside training is done."""

    def step(self, step: int, steps: int, line: dict[str, Any], verdict: str | None = None) -> None:
        """A step is done; `line` is what metrics.jsonl would say of it, `verdict` what its evaluation found, if there was one."""

    def say(self, text: str) -> None:
        """One line that stays."""

    def warn(self, text: str) -> None:
        """One line on stderr, always."""
        warn(text)

    def __enter__(self):
        return self

    def __exit__(self, *exc) -> None:
        pass


def summary(line: dict[str, Any], verdict: str | None = None) -> str:
    """The numbers of a step that a person watches."""
    parts = ["loss not finite" if line["loss"] is None else f"loss {line['loss']:.4f}"]
    if line.get("tokens_per_s"):
        parts.append(f"{line['tokens_per_s']:,.0f} tokens/s")
    parts += [f"{name} {line[name]:.0%}" for name in ("mfu", "goodput") if line.get(name) is not None]
    if verdict is not None:
        parts.append(verdict)
    if line.get("skipped"):
        parts.append(f"{line['skipped']} steps skipped")
    return "  ".join(parts)


class Lines(Silent):
    """Plain lines, at most one every `every` seconds beside those of evaluations."""

    def __init__(self, out: TextIO | None = None, every: float = 5.0):
        self.out, self.every = out or sys.stdout, every
        self.last, self.text, self.staged, self.begun = -every, "", -every, None

    def say(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    def stage(self, text: str, done: int, total: int) -> None:
        if text == self.text and done == total == 1:
            return  # the end of what was begun and has no parts
        if text != self.text or time.monotonic() - self.staged >= self.every:
            self.text, self.staged = text, time.monotonic()
            self.say(f"{text} {done}/{total}" if total > 1 else text)

    def step(self, step: int, steps: int, line: dict[str, Any], verdict: str | None = None) -> None:
        now = time.monotonic()
        if self.begun is None:
            self.begun = step, now
        if verdict is None and now - self.last < self.every:
            return
        self.last = now
        first, since = self.begun
        left = f"  {_clock((now - since) / (step - first) * (steps - step))} left" if step > first else ""
        self.say(f"step {step}/{steps}  {summary(line, verdict)}{left}")


class Bars(Silent):
    """A bar with the current numbers, on a terminal."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self.bars = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[numbers]}"), console=self.console, transient=True,
        )  # fmt: skip
        self.tasks: dict[str, Any] = {}

    def __enter__(self):
        self.bars.start()
        return self

    def __exit__(self, *exc) -> None:
        self.bars.stop()

    def _task(self, text: str, total: int):
        if text not in self.tasks:
            self.tasks[text] = self.bars.add_task(text, total=total, numbers="")
        return self.tasks[text]

    def stage(self, text: str, done: int, total: int) -> None:
        self.bars.update(self._task(text, total), completed=done, total=total, visible=done < total)

    def step(self, step: int, steps: int, line: dict[str, Any], verdict: str | None = None) -> None:
        for text, task in self.tasks.items():
            self.bars.update(task, visible=text == "training")
        self.bars.update(self._task("training", steps), completed=step, numbers=summary(line))
        if verdict is not None:
            self.say(f"step {step}/{steps}  {summary(line, verdict)}")

    def say(self, text: str) -> None:
        self.bars.console.print(text, highlight=False, markup=False)


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    minutes = f"{rest // 60:02d}:{rest % 60:02d}"
    return f"{hours}:{minutes}" if hours else minutes


def shown() -> Silent:
    """Bars on a terminal, plain lines elsewhere."""
    console = Console()
    return Bars(console) if console.is_terminal else Lines()
