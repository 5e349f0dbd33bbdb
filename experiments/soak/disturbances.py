"""What is done to the run: each function starts the command, disturbs it at some moment, and leaves no process behind.

Each returns an `Event`. What came of it is seen at the next start that gets as far as reading a checkpoint.
"""

import os
import re
import resource
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from run_under_test import PATIENCE, Process, Run

LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/local/lib/faketime/libfaketimeMT.so.1")
FOLDERS = ("corpora", "rows")  # of the cache, those whose writing takes long enough to be seen
BYTES_A_LINE = 330  # of metrics.jsonl
JUMPS = ("+400d", "-3000d", "+1h", "-1h", "+36500d", "-90s")
IN_PYTHON = """
import pathlib, time
_real, _file = time.time, pathlib.Path({file!r})
_unit = dict(s=1, h=3600, d=86400)
time.time = lambda: _real() + float((_text := _file.read_text())[:-1]) * _unit[_text[-1]]
"""


@dataclass
class Event:
    """A disturbance and what came of it."""

    kind: str
    moment: str
    how: str = ""
    step: int = 0  # the last with a line when it was over
    saved: int = 0  # the last of an undamaged checkpoint
    went_on: int | None = None  # from where the next start went on
    expected: str | None = None  # what the next start says on stderr
    said: str = ""
    wrong: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Kind and moment."""
        return f"{self.kind}: {self.moment}"


class Disturber:
    """Has a run, a number of lines that a start may add on average, and the clock's ways."""

    def __init__(self, run: Run, starting: float):
        self.run, self.rng, self.starting, self.share = run, run.rng, starting, 50
        self.library = next((str(path) for pattern in LIBRARIES for path in Path("/").glob(pattern[1:])), None)
        self.begun: list[tuple[Process, list[int], str | None]] = []  # starts to judge, and what was saved before
        self.waiting: list[Event] = []  # events of which no start has shown yet what came of them
        self.damaged: set[int] = set()  # checkpoints that we damaged, and no start has read since

    @property
    def clocks(self) -> str:
        """How the clock is made to jump."""
        return "libfaketime, real CLOCK_MONOTONIC" if self.library else "time.time shifted by a sitecustomize"

    @property
    def disks(self) -> str:
        """How the disk is made to be full."""
        return "a small tmpfs, filled by a file" if self.run.mounted else "RLIMIT_FSIZE of the process"

    def intact(self) -> list[int]:
        """Steps of finished checkpoints that nobody damaged."""
        return [step for step in self.run.saved() if step not in self.damaged]

    def empty_cache(self) -> None:
        """Nobody will miss what was cut short there."""
        shutil.rmtree(self.run.cache, ignore_errors=True)
        for event in self.waiting:
            event.expected = None if event.moment == "cached array" else event.expected

    def start(self, event: Event, **options) -> Process:
        """Starts the command; `soak.judge` will look at what it says."""
        before = self.intact()
        process = self.run.start(**options)
        self.begun.append((process, before, event.kind if event.kind == "disk full" else None))
        return process

    def grow(self, process: Process) -> bool:
        """Waits for some more lines; False where the process ended."""
        before = self.run.size()
        wanted = before + self.rng.randrange(1, max(2, 2 * self.share)) * BYTES_A_LINE
        # A start drops lines after its checkpoint: the file shrinks first.
        process.until(lambda: "compiling" in process.out)
        return process.until(lambda: self.run.size() >= wanted)

    def end(self, process: Process, number: int = signal.SIGKILL) -> bool:
        """Sends a signal and waits; False where the process was over before."""
        over = process.over()
        if not over:
            process.popen.send_signal(number)
        process.popen.wait(PATIENCE)
        return not over

    # Kills.

    def kill(self, moment: str) -> Event:
        """SIGKILL at some moment."""
        event = Event("kill", moment)
        if moment in ("preparing data", "rename in the cache"):
            self.empty_cache()
        process = self.start(event, compiled=moment != "compiling")
        wait = {
            "import": self._importing,
            "preparing data": self._preparing,
            "rename in the cache": self._renaming,
            "compiling": self._compiling,
            "steps": self._stepping,
            "saving": self._saving,
        }[moment]
        wait(process)
        event.how = "killed" if self.end(process) else "was over"
        if event.how == "was over" and self.run.saved()[-1:] != [self.run.steps]:
            event.wrong.append(f"ended by itself with status {process.popen.returncode}: {process.err[-300:]}")
        elif moment == "saving" and self.run.saving():
            event.how = "killed, a checkpoint half written"
        elif moment == "rename in the cache" or moment == "preparing data":
            n = len(list(self.run.cache.glob("*/.partial-*")))
            event.how = f"killed, {n} half-written folders" if n else "killed, all folders whole"
        return event

    def _importing(self, process: Process) -> None:
        time.sleep(self.rng.uniform(0, self.starting))

    def _preparing(self, process: Process) -> None:
        process.until(lambda: any(self.run.cache.glob("*/.partial-*")))
        time.sleep(self.rng.uniform(0, 0.6))

    def _renaming(self, process: Process) -> None:
        """From the writing of the checksums to the rename there is less than a millisecond: watched without a pause."""
        place = self.run.cache / self.rng.choice(FOLDERS)
        process.until(lambda: any(place.glob(".partial-*")) or "compiling" in process.out)
        end = time.monotonic() + PATIENCE
        for partial in place.glob(".partial-*"):
            sums = str(partial / "new" / "checksums.json")
            while not os.path.exists(sums) and partial.exists() and time.monotonic() < end:
                pass
        time.sleep(self.rng.choice((0.0, self.rng.uniform(0, 0.0005))))

    def _compiling(self, process: Process) -> None:
        process.until(lambda: "compiling" in process.out)
        time.sleep(self.rng.uniform(0, 1.5))

    def _stepping(self, process: Process) -> None:
        self.grow(process)
        time.sleep(self.rng.uniform(0, 0.05))

    def _saving(self, process: Process) -> None:
        self.grow(process)
        process.until(self.run.saving)
        time.sleep(self.rng.uniform(0, 0.03))

    # A full disk.

    def full(self, moment: str) -> Event:
        """No space left: it must say so in one line and end with status 2."""
        event = Event("disk full", moment)
        if moment == "preparing data":
            self.empty_cache()
        last = max(self.run.saved(), default=None)
        size = (
            400_000
            if last is None
            else sum(p.stat().st_size for p in self.run.checkpoint(last).rglob("*") if p.is_file())
        )
        left = self.rng.randrange(0, size)
        if not self.run.mounted:
            process = self.start(event, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (left, left)))
        elif moment == "while training":
            process = self.start(event)
            self.grow(process)
        else:
            self.run.fill(left)
            process = self.start(event)
        try:
            self._use_up(process, left)
            if self.end(process):
                event.how = f"{left:,} bytes left were enough, killed"
            else:
                said = " ".join(own(process.err)).replace(str(self.run.place), "DIR")
                event.how = f"{left:,} bytes left: status {process.popen.returncode}, {said[:200]!r}"
                self._one_line(event, process)
        finally:
            self.run.filling.unlink(missing_ok=True)
        return event

    def _use_up(self, process: Process, left: int) -> None:
        """Fills the disk again and again: a checkpoint that is removed just then leaves room for the next."""
        for _ in range(20):
            self.run.fill(left)
            size = self.run.size()
            if not process.until(lambda size=size: self.run.size() > size + 5 * BYTES_A_LINE):
                return

    def _one_line(self, event: Event, process: Process) -> None:
        lines = own(process.err)
        if process.popen.returncode != 2 or not lines or not lines[-1].startswith("jaxeff: error:"):
            event.wrong.append(f"status {process.popen.returncode}, stderr {process.err[-600:]!r}")
        if len(lines) > 1:
            event.wrong.append(f"{len(lines)} lines on stderr: {process.err[:600]!r}")

    # The clock.

    def clock(self, moment: str) -> Event:
        """The wall clock jumps twice while it trains; then it is asked to stop."""
        event = Event("clock", moment)
        file = self.run.folder / "clock"
        file.write_text("+0s")
        process = self.start(event, **self._clock_env(file))
        jumps = [self.rng.choice([jump for jump in JUMPS if (jump[0] == "+") == (moment == "forward")]), "+0s"]
        for jump in jumps:
            self.grow(process)
            file.write_text(jump)
        self.grow(process)
        told = self.end(process, signal.SIGTERM)
        event.how = f"{jumps[0]} and back, then SIGTERM: status {process.popen.returncode}"
        if not told or process.popen.returncode != 128 + signal.SIGTERM or own(process.err):
            event.wrong.append(f"status {process.popen.returncode}, stderr {process.err[-300:]!r}")
        return event

    def _clock_env(self, file: Path) -> dict[str, str]:
        if self.library:
            return {
                "LD_PRELOAD": self.library,
                "FAKETIME_TIMESTAMP_FILE": str(file),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "NO_FAKE_STAT": "1",
            }
        folder = self.run.folder / "sitecustomize"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(IN_PYTHON.format(file=str(file)))
        return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [str(Path(__file__).parents[2])])])}

    # Files cut short.

    def truncate(self, moment: str) -> Event:
        """A kill, and then a file is cut short."""
        event = Event("file cut short", moment)
        process = self.start(event)
        self._stepping(process)
        self.end(process)
        if len(self.run.saved()) < 2:  # of two, one may be lost
            process = self.start(event)
            process.until(lambda: len(self.run.saved()) >= 2)
            self.end(process)
        path = self._victim(moment)
        if moment == "metrics.jsonl":
            self._cut_lines(path)
        else:
            os.truncate(path, self.rng.randrange(0, path.stat().st_size))
        if moment in ("array", "record"):
            self.damaged.add(self.run.saved()[-1])
        event.how = f"{path.relative_to(self.run.place)} has {path.stat().st_size:,} bytes left"
        event.expected = {"array": "damaged", "record": "damaged", "cached array": "damaged"}.get(moment)
        return event

    def _victim(self, moment: str) -> Path:
        last = self.run.checkpoint(self.run.saved()[-1])
        found = {
            "array": lambda: (p for p in (last / "state").rglob("d/*") if p.is_file()),
            "record": lambda: [last / "record" / "metadata"],
            "cached array": lambda: self.run.cache.glob("rows/*/*.npy"),
            "kept data": lambda: (p for p in (self.run.work / "data").rglob("*") if p.is_file()),
            "metrics.jsonl": lambda: [self.run.work / "metrics.jsonl"],
        }[moment]()
        found = sorted((p for p in found if p.stat().st_size), key=lambda p: (p.stat().st_size, p.name))
        return found[-1] if moment == "array" else self.rng.choice(found)

    def _cut_lines(self, path: Path) -> None:
        """Anywhere behind the line of the last checkpoint: what is before it no start writes again."""
        saved, content = self.run.saved()[-1], path.read_bytes()
        ends = [match.end() for match in re.finditer(rb"\n", content)]
        safe = ends[min(saved, len(ends)) - 1]
        path.write_bytes(
            content[: self.rng.randrange(safe, len(content))] if safe < len(content) else content + b'{"step": 1'
        )


def own(err: str) -> list[str]:
    """What a start said on stderr but of damage that was done before; that is judged elsewhere."""
    return [line for line in err.strip().splitlines() if "damaged" not in line]


MOMENTS = {
    "kill": ("steps", "saving", "import", "preparing data", "rename in the cache", "saving", "compiling"),
    "disk full": ("while training", "at the start", "preparing data", "while training"),
    "clock": ("forward", "backward"),
    "file cut short": ("array", "metrics.jsonl", "record", "cached array", "kept data"),
}
AN_HOUR = {"kill": 60, "disk full": 10, "clock": 5, "file cut short": 5}
METHODS = {"kill": "kill", "disk full": "full", "clock": "clock", "file cut short": "truncate"}


def plan(minutes: float, rng) -> list[tuple[str, str]]:
    """(kind, moment) of each disturbance, in order: as many of each kind as the time deserves, and at least one."""
    found = []
    for kind, count in AN_HOUR.items():
        n = max(1, round(count * minutes / 60))
        found += [(kind, MOMENTS[kind][i % len(MOMENTS[kind])]) for i in range(n)]
    rng.shuffle(found)
    return found


if __name__ == "__main__":
    sys.exit("run soak.py")
