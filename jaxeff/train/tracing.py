"""A trace of some steps of a run, as XProf and TensorBoard read it: what the devices and the host did, and when."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxeff.core.errors import UserError
from jaxeff.core.files import refusals
from jaxeff.train.clock import Clock
from jaxeff.train.progress import Silent

FOLDER = "profile"  # within the run's


@dataclasses.dataclass(frozen=True)
class Profile:
    """Which steps of a start are traced: its `first` to its `last`, from 1 on, both included. everywhere: by every process, into a
    folder of its own, and not by the first alone. Raises UserError where there are no such steps."""

    first: int
    last: int
    everywhere: bool = False

    def __post_init__(self):
        if not 1 <= self.first <= self.last:
            raise UserError(
                f"steps {self.first} to {self.last} cannot be traced: the first is 1, and none comes before it"
            )


class Tracer:
    """Traces the steps of a start, `left` of which there are at most. profile: None for none of them. clock: told how
    long beginning and writing took. Raises UserError where the
    steps to trace are more than that, and where the file system refuses the folder."""

    def __init__(self, profile: Profile | None, workdir: Path, left: int, report: Silent, clock: Clock):
        process = jax.process_index()
        self.profile = profile if profile is not None and (process == 0 or profile.everywhere) else None
        self.folder = workdir / FOLDER / (f"process-{process}" if process else "")
        self.report, self.clock, self.running, self.number = report, clock, False, 0
        if profile is not None and profile.last > left:
            raise UserError(
                f"steps {profile.first} to {profile.last} cannot be traced: this start has {left} steps to do"
            )
        if self.profile is not None:
            with refusals(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """While the `number`-th step of the start is sent off."""
        if self.profile is not None and number == self.profile.first:
            with self.clock.waiting("profile"):
                jax.profiler.start_trace(str(self.folder))
            self.running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number) if self.running else contextlib.nullcontext():
            yield

    def sent(self, number: int, results: Any) -> None:
        """It was sent off; the trace ends when the `results` of its last one are there."""
        self.number = number
        if self.running and number == self.profile.last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Writes what was traced so far."""
        if self.running:
            self.running = False
            with refusals(self.folder), self.clock.waiting("profile"):
                jax.profiler.stop_trace()
            steps = f"steps {self.profile.first} to {self.number}"
            self.report.say(f"trace of {steps} of this start in {self.folder}, for XProf or TensorBoard")
