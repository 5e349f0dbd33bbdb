"""The other side of a comparison: a program in its own environment, asked for one step at a time over a pipe."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from jaxeff.core.errors import UserError

PROGRAMS = {"hf": Path(__file__).parent / "peers" / "hf.py"}
DEFAULT_PYTHON = ".venv-bench/bin/python"


def peer_python(path: str | None = None) -> str:
    """The peers' interpreter: `path`, else $JAXEFF_PEER_PYTHON, else `.venv-bench/bin/python` of this folder."""
    chosen = path or os.environ.get("JAXEFF_PEER_PYTHON") or DEFAULT_PYTHON
    if not os.access(chosen, os.X_OK):
        raise UserError(
            f"the peers' Python {chosen} is not there: run `make bench-env`, or give --peer-python "
            "one that has torch and transformers"
        )
    return chosen


class Peer:
    """A running peer: `ask(do=..., **fields)` sends one JSON line and waits for one. Ends with its `with` block."""

    def __init__(self, name: str, python: str | None = None):
        self.log = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen(
            [peer_python(python), str(PROGRAMS[name])],
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
