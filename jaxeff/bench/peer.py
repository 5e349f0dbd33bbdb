"""The other side of a comparison: a program in its own environment, asked for one step at a time over a pipe."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from jaxeff.core.errors import UserError

PEERS = Path(__file__).parent / "peers"
PROGRAMS = {"hf": PEERS / "hf.py", "maxtext": PEERS / "maxtext_step.py"}


class Home(NamedTuple):
    """Where a program finds its libraries: a variable that names the interpreter, the default one, what makes it, what it has."""

    variable: str
    python: str
    made_by: str
    has: str


HOME = Home("JAXEFF_PEER_PYTHON", ".venv-bench/bin/python", "make bench-env", "torch and transformers")
HOMES = {"maxtext": Home("JAXEFF_MAXTEXT_PYTHON", ".venv-maxtext/bin/python", "make maxtext-env", "maxtext")}


def peer_python(path: str | None = None, name: str = "hf") -> str:
    """A peer's interpreter: `path`, else that of the variable $JAXEFF_PEER_PYTHON ($JAXEFF_MAXTEXT_PYTHON for MaxText), else
    `.venv-bench/bin/python` (`.venv-maxtext`) of this folder."""
    home = HOMES.get(name, HOME)
    chosen = path or os.environ.get(home.variable) or home.python
    if not os.access(chosen, os.X_OK):
        raise UserError(
            f"the peers' Python {chosen} is not there: run `{home.made_by}`, or give --peer-python one that has {home.has}"
        )
    return chosen


class Peer:
    """A running peer: `ask(do=..., **fields)` sends one JSON line and waits for one. Ends with its `with` block."""

    def __init__(self, name: str, python: str | None = None):
        self.log = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen(
            [peer_python(python, name), str(PROGRAMS[name])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def ask(self, **request) -> dict:
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: the empty answer below says why
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"the peer ended: {self._last_words()}")
        return json.loads(line)

    def _last_words(self) -> str:
        self.process.wait(timeout=10)
        self.log.seek(0)
        lines = [line.strip() for line in self.log if line.strip()]
        return lines[-1] if lines else f"exit status {self.process.returncode}, nothing on stderr"

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()
