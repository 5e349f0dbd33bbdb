"""What a run shows while it goes on: bars on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn


class Silent:
    """Shows nothing: the base of the others."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def stage(self, text: str, done: int, total: int) -> None:
        """Work before the first step: reading, tokenizing, compiling."""

    def step(self, step: int, steps: int, line: dict[str, Any]) -> None:
        """A step was logged: `line` is what metrics.jsonl gets."""

    def say(self, text: str) -> None:
        """One line that stays."""


def describe(line: dict[str, Any]) -> str:
    """A logged step in words."""
    parts = [f"loss {line['loss']:.4f}"]
    if line.get("tokens_per_s"):
        parts.append(f"{line['tokens_per_s']:,.0f} tokens/s")
    if "bits_per_byte" in line:
        parts.append(f"validation {line['bits_per_byte']:.4f} bits per byte")
    return "  ".join(parts)


class Lines(Silent):
    """A line for each logged step, and one for each stage."""

    def __init__(self, out: TextIO | None = None):
        self.out, self.text, self.shown, self.first = out or sys.stdout, "", 0.0, None

    def say(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    def stage(self, text: str, done: int, total: int) -> None:
        if text != self.text or time.perf_counter() - self.shown > 10:
            self.text, self.shown = text, time.perf_counter()
            self.say(f"{text}: {done:,} of {total:,}" if total > 1 else text)

    def step(self, step: int, steps: int, line: dict[str, Any]) -> None:
        now = time.perf_counter()
        self.first = self.first or (step, now)
        done = step - self.first[0]
        left = (now - self.first[1]) / done * (steps - step) if done else None
        end = "" if left is None or step == steps else f"  {int(left) // 60}:{int(left) % 60:02d} left"
        self.say(f"step {step} of {steps}  {describe(line)}{end}")


class Bars(Silent):
    """One bar, and evaluations as lines above it."""

    def __init__(self, console: Console):
        self.bars = Progress(
            SpinnerColumn(), TextColumn("[bold]{task.description}"), BarColumn(bar_width=28), TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(), console=console, transient=True,
        )  # fmt: skip
        self.task = self.bars.add_task("starting", total=None, note="")

    def __enter__(self):
        self.bars.start()
        return self

    def __exit__(self, *error):
        self.bars.stop()

    def say(self, text: str) -> None:
        self.bars.console.print(text, highlight=False)

    def stage(self, text: str, done: int, total: int) -> None:
        self.bars.update(self.task, description=text, completed=done, total=total, note="")

    def step(self, step: int, steps: int, line: dict[str, Any]) -> None:
        self.bars.update(self.task, description=f"step {step}/{steps}", completed=step, total=steps, note=describe(line))
        if "bits_per_byte" in line:
            self.say(f"step {step}  {describe(line)}")


def shown() -> contextlib.AbstractContextManager:
    """Bars on a terminal, plain lines elsewhere."""
    console = Console()
    return Bars(console) if console.is_terminal else Lines(sys.stdout)
