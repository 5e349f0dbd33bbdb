"""How long a run has trained, and what the time went into."""

import collections
import contextlib
import datetime
import time
from typing import Any

from jaxeff.train.run_files import SPENT

# Steps over which tokens per second are counted: metrics are read in pairs around a save, one step alone says little.
WINDOW = 20


class Clock:
    """Seconds of training, earlier starts included and evaluation left out, and what else the loop on the host has waited for.

    before, computed_before: seconds of training and of computing steps up to where this start goes on; None for the latter where
    it was not recorded. ideal: seconds that a step takes at the devices' peak, None where no peak is known. since: when the run
    first started, in seconds since 1970.
    """

    def __init__(self):
        self.before: float = 0.0
        self.computed_before: float | None = 0.0
        self.ideal: float | None = None
        self.since: float | None = None
        self._recent: collections.deque[tuple[float, int]] = collections.deque(maxlen=WINDOW)
        self.start()

    def start(self):
        """Now is where this process's training starts."""
        self._begun = time.perf_counter()
        self._waits = dict.fromkeys(SPENT, 0.0)
        self._from = self._now = dict(self._waits)  # what was spent up to the last line, and up to the last step
        self._line: tuple[float, int] | None = None  # seconds and step of the last line, or of the first step
        self._last: tuple[float, int] = 0.0, 0

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self.before + time.perf_counter() - self._begun - self._waits["evaluation"]

    @property
    def computed(self) -> float | None:
        """What of it went into steps: all but what the loop waited for."""
        return None if self.computed_before is None else self.computed_before + self._spent()["compute"]

    @contextlib.contextmanager
    def waiting(self, name: str):
        """Time in which the loop waits for something of SPENT; what goes into evaluation is no training."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._waits[name] += time.perf_counter() - begun

    def tick(self, tokens: int) -> float | None:
        """Tokens per second over the last steps, given the tokens so far; None after the first step, which compiled."""
        self._recent.append((self.seconds, tokens))
        (since, before), (now, total) = self._recent[0], self._recent[-1]
        return (total - before) / (now - since) if now > since else None

    def told(self, step: int) -> dict[str, Any]:
        """What a line says of the time since the line before, the steps up to `step` being done.

        {"compute", "data_wait", ...}: seconds; "mfu": model FLOPs utilisation, where a peak is known and not for the first step of
        a start, which compiled; "goodput": the share of the time since the first start that went into steps that were kept.
        """
        self._now, self._last = self._spent(), (self.seconds, step)
        found: dict[str, Any] = {name: self._now[name] - self._from[name] for name in SPENT}
        (since, before), (now, done) = self._line or self._last, self._last
        if self.ideal is not None and now > since:
            found["mfu"] = self.ideal * (done - before) / (now - since)
        if (goodput := self._goodput()) is not None:
            found["goodput"] = goodput
        self._line = since, before
        return found

    def mark(self):
        """What was last told stands in a line: the next one tells of the time from there on."""
        self._from, self._line = self._now, self._last

    def _spent(self) -> dict[str, float]:
        passed = time.perf_counter() - self._begun
        return self._waits | {"compute": passed - sum(self._waits.values())}

    def _goodput(self) -> float | None:
        passed = 0.0 if self.since is None else time.time() - self.since
        return self.computed / passed if passed > 0 and self.computed is not None else None


def moment(text) -> float | None:
    """Seconds since 1970 of a time as run.json has it, None for what is none."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
