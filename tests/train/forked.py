"""`jaxeff ...` as processes forked from one that has imported all they need, so that they begin with their own work.

As a program: for each line, the words of a command and a file for its stderr (stdout goes beside it), it prints the id of the
process and, once it is over, its exit status. No backend of JAX has started before a fork, so that each process starts its own.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from jaxeff.cli import main
from jaxeff.train import config_file, loop  # noqa: F401  what `jaxeff train` imports
from tests.train.tiny import environment


class Forked:
    """As much of `subprocess.Popen` as the tests need; one process of a forker at a time."""

    def __init__(self, forker: subprocess.Popen, words, log: Path):
        self.pipe, self.log, self.returncode = forker.stdout, log, None
        forker.stdin.write(json.dumps([words, str(log)]).encode() + b"\n")
        self.pid = int(self.pipe.readline())

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self.returncode is None and select.select([self.pipe], [], [], 0)[0]:
            self.returncode = int(self.pipe.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing happens to one that is over."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self) -> str:
        """Its stderr, once it is over."""
        if self.returncode is None:
            self.returncode = int(self.pipe.readline())
        return self.log.read_text()

    def stdout(self) -> str:
        """What it has printed by now."""
        out = Path(f"{self.log}.out")
        return out.read_text() if out.exists() else ""


def done(forker: subprocess.Popen, words, log: Path) -> str:
    """The stdout of a process that is waited for, and must succeed."""
    process = Forked(forker, words, log)
    err = process.wait()
    assert process.returncode == 0, err
    return process.stdout()


@contextlib.contextmanager
def forker(folder: Path):
    """The process whose children work in `folder`."""
    env = environment(folder) | {"OPENBLAS_NUM_THREADS": "1"}  # for a fork of more threads Python warns
    words, pipe = [sys.executable, "-m", "tests.train.forked"], subprocess.PIPE
    with subprocess.Popen(words, cwd=folder, env=env, bufsize=0, stdin=pipe, stdout=pipe) as server:
        yield server
        server.stdin.close()
        assert server.wait(60) == 0


def serve() -> None:
    """Forks for every line of stdin, until there are no more."""
    for line in sys.stdin:
        words, log = json.loads(line)
        pid = os.fork()
        if pid == 0:
            for number, file, mode in ((0, os.devnull, "r"), (1, f"{log}.out", "w"), (2, log, "w")):
                with open(file, mode) as opened:
                    os.dup2(opened.fileno(), number)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            sys.argv = ["jaxeff", *words]
            sys.exit(main(words))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
