"""How long an ablation will still take: so much a step, and a compilation more for each model that is new."""

import dataclasses
import time
from collections.abc import Callable


@dataclasses.dataclass
class Estimate:
    """Learns from the runs as they go. steps, compilations: what is left; measuring a model's costs counts as a compilation."""

    steps: int = 0
    compilations: float = 0
    now: Callable[[], float] = time.perf_counter

    def __post_init__(self):
        self.timed_steps, self.timed_seconds = 0, 0.0
        self.compiling: dict[str, float] = {}
        self.model, self.begun, self.last, self.at = "", 0.0, None, 0

    def skip(self, steps: int) -> None:
        """A run was finished before."""
        self.steps -= steps

    def grow(self, steps: int) -> None:
        """There is a run more than was known."""
        self.steps += steps

    def begin(self, model: str) -> None:
        """A run of a model starts."""
        self.model, self.begun, self.last, self.at = model, self.now(), None, 0

    def step(self, step: int) -> None:
        """The current run has done so many steps."""
        now = self.now()
        if self.last is not None:
            self.timed_steps += step - self.at
            self.timed_seconds += now - self.last
        elif self.model not in self.compiling:
            self.compiling[self.model] = now - self.begun
            self.compilations -= 1
        self.at, self.last = step, now

    def end(self, steps: int) -> None:
        """The current run is finished."""
        self.steps, self.at = self.steps - steps, 0

    def left(self) -> float | None:
        """Seconds; None before anything is known."""
        if not self.timed_steps:
            return None
        per_step = self.timed_seconds / self.timed_steps
        compiling = sum(self.compiling.values()) / len(self.compiling)
        return per_step * max(0, self.steps - self.at) + compiling * max(0.0, self.compilations)


def clock(seconds: float | None) -> str:
    """ "3:05", and "?" for what is not known."""
    return "?" if seconds is None else f"{round(seconds) // 60}:{round(seconds) % 60:02d}"
