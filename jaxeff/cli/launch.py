"""`jaxeff launch`: several processes of this machine that train together, started again where one of them dies."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from jaxeff.cli.arguments import seconds, whole
from jaxeff.core.address import address
from jaxeff.core.errors import UserError, nearest, warn
from jaxeff.core.lifeline import LOST
from jaxeff.core.processes import VARIABLES, free_port
from jaxeff.train.signals import Stopped, on_signal

TOGETHER = ("train", "eval")  # commands that several processes can do together
POLL = 0.05  # seconds between two looks at the processes
FOLLOWING = (LOST, -signal.SIGABRT)  # what becomes of the others where one has died
REFUSED = 2  # the exit status of a process whose user can put it right: the same again would say the same


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("--processes", type=whole(1), default=1, metavar="N", help="how many (default 1)")
    parser.add_argument(
        "--restarts", type=whole(0), default=3, metavar="K",
        help="how often all are started again after one has died, to go on from the last checkpoint (default 3)",
    )  # fmt: skip
    parser.add_argument(
        "--patience", type=seconds, default=60.0, metavar="SECONDS",
        help="how long processes have to save and end once they are asked to (default 60)",
    )  # fmt: skip
    parser.add_argument(
        "words", nargs="+", metavar="COMMAND", help="what each does, after --: train CONFIG --workdir DIR ..."
    )


def run(args: argparse.Namespace) -> int:
    """Does it."""
    if args.words[0] not in TOGETHER:
        raise UserError(
            f"launch {args.words[0]}: not a command for several processes; {nearest(args.words[0], TOGETHER)}"
        )
    logs = _logs(args.words)
    for left in range(args.restarts, -1, -1):
        status, reason = _once(args, logs)
        if reason is None:
            return status
        if left:
            warn(f"{reason}; all {args.processes} start again, from the last checkpoint (restarts left: {left - 1})")
    warn(f"{reason}; no restarts are left (--restarts {args.restarts})")
    return status


def _logs(words: list[str]) -> Path:
    """The folder for what the processes but the first say: the run's own, this one where that is in a store."""
    from jaxeff.cli import parser

    workdir = parser().parse_args(words).workdir
    return Path("." if workdir is None or address(workdir) is not None else workdir)


def _once(args: argparse.Namespace, logs: Path) -> tuple[int, str | None]:
    """(exit status, which process died of what; None where the run is done, was refused or was stopped)."""
    with on_signal() as stop, _started(args, logs) as processes:
        while not stop():
            codes = [process.poll() for process in processes]
            failed = [i for i, code in enumerate(codes) if code not in (None, 0)]
            if failed:
                return _ended(processes, min(failed, key=lambda i: codes[i] in FOLLOWING), logs)
            if None not in codes:
                return 0, None
            time.sleep(POLL)
        _end(processes, stop.number, args.patience)
        done = all(process.poll() == 0 for process in processes)  # the signal came after the last step
        return (0 if done else Stopped(stop.number).status), None


@contextlib.contextmanager
def _started(args: argparse.Namespace, logs: Path) -> Iterator[list[subprocess.Popen]]:
    """The processes, in sessions of their own: a signal from the terminal reaches them through this one, and once. None outlives
    the context."""
    command = [sys.executable, "-m", "jaxeff.cli", *args.words]
    address = f"127.0.0.1:{free_port()}"
    processes: list[subprocess.Popen] = []
    try:
        for i in range(args.processes):
            place = dict(zip(VARIABLES, (address, str(args.processes), str(i))))
            if args.processes > 1:  # of several GPUs each process has its own, unless somebody says otherwise
                place["JAX_LOCAL_DEVICE_IDS"] = os.environ.get("JAX_LOCAL_DEVICE_IDS", str(i))
            with _output(i, logs) as output:
                processes.append(
                    subprocess.Popen(
                        command, env=os.environ | place, stdin=subprocess.DEVNULL, start_new_session=True, **output
                    )
                )
        yield processes
    finally:
        _kill(processes)


@contextlib.contextmanager
def _output(i: int, logs: Path) -> Iterator[dict]:
    """Where a process writes: the first where this one does, another to process-<i>.log."""
    if i == 0:
        yield {}
        return
    from jaxeff.core.files import refusals

    with refusals(logs):
        logs.mkdir(parents=True, exist_ok=True)
        file = open(_log(logs, i), "a")  # noqa: SIM115
    with file:
        yield {"stdout": file, "stderr": subprocess.STDOUT}


def _log(logs: Path, i: int) -> Path:
    return logs / f"process-{i}.log"


def _ended(processes: list[subprocess.Popen], first: int, logs: Path) -> tuple[int, str | None]:
    """As `_once`, after process `first` has ended otherwise than well."""
    code = processes[first].returncode
    where = f"; see {_log(logs, first)}" if first else ""
    if code == REFUSED:
        if first:
            warn(f"process {first} of {len(processes)} was refused{where}")
        return code, None
    what = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return (128 - code if code < 0 else code), f"process {first} of {len(processes)} {what}{where}"


def _end(processes: list[subprocess.Popen], number: int, patience: float) -> None:
    """Passes a signal on, and returns when all have ended, or were given time enough to."""
    end = time.monotonic() + patience
    _send(processes, number)
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        time.sleep(POLL)


def _send(processes: list[subprocess.Popen], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _kill(processes: list[subprocess.Popen]) -> None:
    _send(processes, signal.SIGKILL)
    for process in processes:
        process.wait()
