"""Ending a run from outside: SIGINT, SIGTERM and SIGHUP."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

from jaxeff.core.processes import client, several

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 2.0  # seconds


class Stopped(KeyboardInterrupt):
    """A signal came; what there was to save is saved. status: the exit status that says so, as shells have it."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number


class Stop:
    """`stop` for `fit`: whether a signal has come.

    Until it is asked for the first time there is nothing to lose, and a signal raises Stopped at once. From then on it will be
    asked again, and a first signal is remembered until then. A second one always has its usual effect.
    """

    def __init__(self):
        self.number: int | None = None
        self.patient = False

    def __call__(self) -> bool:
        self.patient = True
        return self.number is not None

    def stopped(self) -> Stopped:
        """The exception for the signal that came."""
        return Stopped(self.number)


class Agreed:
    """`stop` for `fit` in several processes: all stop after the same step, whichever of them the signal came to.

    When a process asks after step n, all others have sent off step n - 1, and none more than step n + 1: its numbers come only
    once all have sent off theirs. What is written now is hence known to all when they ask after step n + 2.
    """

    FOLDER = "jaxeff/stop"

    def __init__(self, stop: Stop, client):
        self.stop, self.client, self.asked, self.at = stop, client, 0, None

    def __call__(self) -> bool:
        self.asked += 1
        if self.at is None and self.stop():
            with contextlib.suppress(RuntimeError):  # another process was faster: what it wrote holds
                self.client.key_value_set(f"{self.FOLDER}/at", f"{self.asked + 2} {int(self.stop.number)}")
        if self.at is None and (written := self.client.key_value_dir_get(self.FOLDER)):
            self.at, number = map(int, written[0][1].split())
            self.stop.number = self.stop.number or number
        return self.at is not None and self.asked >= self.at


def agreed(stop: Stop) -> Callable[[], bool]:
    """`stop` itself for a process on its own, else what all processes agree upon."""
    return Agreed(stop, client()) if several() else stop


_ACTIVE: list[Stop] = []  # the innermost context's last


@contextlib.contextmanager
def on_signal() -> Iterator[Stop]:
    """Signals are for this Stop while the context lasts; in another thread than the main one there are none."""
    stop, usual = Stop(), {}

    def handle(number, frame):
        stop.number = number
        signal.signal(number, usual[number])
        if not stop.patient:
            raise stop.stopped()

    if threading.current_thread() is threading.main_thread():
        # One that is ignored stays so: nohup and background jobs ask for it.
        heard = [number for number in NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]
        usual = {number: signal.getsignal(number) for number in heard}
        for number in heard:
            signal.signal(number, handle)
    _ACTIVE.append(stop)
    try:
        yield stop
    finally:
        _ACTIVE.remove(stop)
        for number, handler in usual.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ends_in_time() -> Iterator[None]:
    """Where a library's long call (a compilation, say) keeps Python from hearing a signal, and there is nothing to lose, the
    process ends all the same. For a process of our own, and its main thread."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)

    def watch():
        while number := ours.recv(1):
            if number[0] in NUMBERS and not patient() and not over.wait(PATIENCE) and not patient():
                os.write(sys.stderr.fileno(), f"jaxeff: {Stopped(number[0])}\n".encode())
                os._exit(128 + number[0])

    def patient() -> bool:
        return any(stop.patient for stop in _ACTIVE)

    over, watcher = threading.Event(), threading.Thread(target=watch, daemon=True)
    watcher.start()
    with ours:
        try:
            yield
        finally:
            over.set()
            signal.set_wakeup_fd(before)
            theirs.close()
            watcher.join()
