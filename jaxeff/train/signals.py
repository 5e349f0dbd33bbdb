"""Ending a run from outside: SIGTERM and SIGINT."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def on_signal() -> Iterator[Callable[[], bool]]:
    """`stop` for `fit`: true after SIGTERM or SIGINT. A second signal has its usual effect, at once."""
    asked = threading.Event()
    usual = {}

    def handle(number, frame):
        asked.set()
        signal.signal(number, usual[number])

    if threading.current_thread() is threading.main_thread():
        usual = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
