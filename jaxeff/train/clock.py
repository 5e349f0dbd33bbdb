"""How long a run has trained, and what of that it waited."""

import collections
import contextlib
import time

# Steps over which tokens per second are counted: metrics are read in pairs around a save, one step alone says little.
WINDOW = 20


class Clock:
    """Seconds of training, earlier starts included and evaluation left out, and what of them was spent waiting."""

    def __init__(self):
        self.before = self._left_out = 0.0
        self._waits = {"data_wait": 0.0, "save_wait": 0.0}
        self._recent: collections.deque[tuple[float, int]] = collections.deque(maxlen=WINDOW)
        self.start()

    def start(self):
        """Now is where this process's training starts."""
        self._begun, self._left_out = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self.before + time.perf_counter() - self._begun - self._left_out

    @contextlib.contextmanager
    def paused(self):
        """Time that is no training."""
        begun = time.perf_counter()
        yield
        self._left_out += time.perf_counter() - begun

    @contextlib.contextmanager
    def waiting(self, name: str):
        """Time in which the loop waits for something."""
        begun = time.perf_counter()
        yield
        self._waits[name] += time.perf_counter() - begun

    def tick(self, tokens: int) -> float | None:
        """Tokens per second over the last steps, given the tokens so far; None after the first step, which compiled."""
        self._recent.append((self.seconds, tokens))
        (since, before), (now, total) = self._recent[0], self._recent[-1]
        return (total - before) / (now - since) if now > since else None

    def waits(self) -> dict[str, float]:
        """Seconds of waiting, by reason, since the last call."""
        found, self._waits = self._waits, dict.fromkeys(self._waits, 0.0)
        return found
