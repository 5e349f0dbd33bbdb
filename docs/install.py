"""pip install, told in a line for each phase; on a terminal the line lives.

python docs/install.py .venv/bin/python --editable ".[test]"

The first argument is the Python whose environment is installed into, the others are those of `pip install`. What pip says is kept
to itself unless it fails. The standard library alone: this runs before anything is installed.
"""

import re
import subprocess
import sys
import threading
import time
from typing import TextIO

FETCHED = re.compile(r"\s*(?:Collecting|Obtaining|Requirement already satisfied:) ([\w.-]+)")
LOADING = re.compile(r"\s*Downloading (\S+).*\((.*)\)")
INSTALLING = re.compile(r"Installing collected packages: (.*)")


class Told:
    """What is shown; `done` ends it. out: where, a terminal or not."""

    def __init__(self, out: TextIO):
        self.out, self.living, self.begun = out, out.isatty(), time.monotonic()
        self.packages: set[str] = set()
        self.phase, self.now = "", ""
        self.ended = threading.Event()
        self.clock = threading.Thread(target=self._tick, daemon=True)
        self.clock.start()

    def line(self, text: str) -> None:
        """A line of pip's output."""
        if found := FETCHED.match(text):
            self.packages.add(found[1].lower())
            self._begin("finding packages", f"{len(self.packages)}: {found[1]}")
        elif found := LOADING.match(text):
            self._begin("finding packages", f"{len(self.packages)}: {found[1].rpartition('/')[2]}, {found[2]}")
        elif found := INSTALLING.match(text):
            n = found[1].count(",") + 1
            self._begin(f"installing {n} package{'' if n == 1 else 's'}", "")

    def done(self, text: str) -> None:
        """The last line; nothing is shown afterwards."""
        self.ended.set()
        self.clock.join()
        self._write(text, stays=True)

    def _begin(self, phase: str, now: str) -> None:
        if phase != self.phase and not self.living:
            self._write(phase, stays=True)
        self.phase, self.now = phase, now

    def _tick(self) -> None:
        while not self.ended.wait(0.25):
            if self.living and self.phase:
                self._write(f"{time.monotonic() - self.begun:4.0f} s  {self.phase}  {self.now}"[:79], stays=False)

    def _write(self, text: str, stays: bool) -> None:
        before = "\r\033[K" if self.living else ""
        self.out.write(before + text + ("\n" if stays else ""))
        self.out.flush()


def install(python: str, arguments: list[str], out: TextIO = sys.stdout, err: TextIO = sys.stderr) -> int:
    """Runs pip; returns its exit status. What it said goes to `err` where it fails."""
    command = [python, "-m", "pip", "install", "--progress-bar", "off", *arguments]
    told, said = Told(out), []
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as pip:
            for text in pip.stdout:
                said.append(text)
                told.line(text)
    except KeyboardInterrupt:
        told.done("stopped")
        return 130
    except OSError as error:
        told.done(f"{python} does not run")
        err.write(f"{error}\n")
        return 2
    told.done(f"{'failed' if pip.returncode else 'done'} after {time.monotonic() - told.begun:.0f} s")
    if pip.returncode:
        err.write("".join(said[-40:]))
    return pip.returncode


if __name__ == "__main__":
    sys.exit(install(sys.argv[1], sys.argv[2:]))
