"""Runs watched while they train: `Watch(folders).text()`. Reads their files alone, without JAX; see `jaxeff.lab.folders`."""

import collections
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jaxeff.core.errors import UserError
from jaxeff.lab.folders import Folder, number, printable, read, words
from jaxeff.lab.runs import NONE, aligned, cut, listed
from jaxeff.lab.text_chart import sparkline
from jaxeff.train.run_files import SPENT, line_of

RECENT = 20  # lines over which pace and shares are counted
PATIENCE = 60.0  # seconds without a line that are never called silence
BAR = 20


class Log:
    """metrics.jsonl as it grows: what was read once is not read again, unless the file was written anew.

    losses: by step, finite ones alone. recent: the last lines. bad: how many cannot be read. written: when it last was, in
    seconds since 1970, None where there is none.
    """

    def __init__(self, folder: str):
        self.path = Path(folder) / "metrics.jsonl"
        self._begin(None)

    def _begin(self, file: tuple[int, int] | None) -> None:
        self.file, self.offset, self.bad, self.written = file, 0, 0, None
        self.losses: dict[int, float] = {}
        self.recent: collections.deque[dict[str, Any]] = collections.deque(maxlen=RECENT)

    def read(self) -> None:
        """Reads what is new. Raises UserError when the file cannot be read."""
        try:
            with open(self.path, "rb") as file:
                there = os.fstat(file.fileno())
                if (there.st_dev, there.st_ino) != self.file or there.st_size < self.offset:
                    self._begin((there.st_dev, there.st_ino))
                file.seek(self.offset)
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            self._begin(None)
            return
        except OSError as error:
            raise UserError(f"{printable(self.path)} cannot be read: {error.strerror}") from None
        self.written = there.st_mtime
        if whole:
            self.offset += len(whole) + 1
            for text in whole.split(b"\n"):
                self._add(text)

    def _add(self, text: bytes) -> None:
        line = line_of(text)
        if line is None:
            self.bad += bool(text.strip())
            return
        self.recent.append(line)
        if (loss := number(line["loss"])) is not None:
            self.losses[line["step"]] = loss


def spent(line: dict[str, Any]) -> dict[str, float]:
    """Seconds since the line before, by what they went into; {} where the line does not tell."""
    found = {name: number(line.get(name)) for name in SPENT}
    return {name: value for name, value in found.items() if value is not None and value >= 0}


def shares(lines: Iterable[dict[str, Any]]) -> dict[str, float]:
    """What part of the time of some lines went into what; {} where they do not tell."""
    sums: collections.Counter[str] = collections.Counter()
    for line in lines:
        sums.update(spent(line))
    total = math.fsum(sums.values())
    return {name: sums[name] / total for name in SPENT if name in sums} if total > 0 else {}


def pace(lines: Iterable[dict[str, Any]]) -> float | None:
    """Seconds that a step takes by some lines, evaluation and saving included and compilation not; None where they do not tell."""
    first, *rest = [*lines] or [{}]
    steps = rest[-1]["step"] - first["step"] if rest else 0
    seconds = math.fsum(value for line in rest for name, value in spent(line).items() if name != "compile")
    return seconds / steps if steps > 0 and seconds > 0 else None


@dataclasses.dataclass(frozen=True)
class Look:
    """A run at a moment. now: in seconds since 1970. saved: (step, when) of the newest checkpoint, None where there is none."""

    run: Folder
    log: Log
    saved: tuple[int, float] | None
    now: float

    @property
    def share(self) -> float | None:
        """Of the steps that are done."""
        return min(1.0, self.run.step / self.run.steps) if self.run.steps and self.run.steps > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds to the end at the pace of the last lines, None where nobody trains or no pace is known."""
        per_step = pace(self.log.recent)
        known = self.run.running and per_step is not None and self.run.steps is not None
        return per_step * max(0, self.run.steps - self.run.step) if known else None

    @property
    def silent(self) -> bool:
        """Whether a process trains, and has long written no line, by how often it did."""
        if not self.run.running or self.log.written is None or not self.log.recent:
            return False
        usual = math.fsum(math.fsum(spent(line).values()) for line in self.log.recent) / len(self.log.recent)
        return self.now - self.log.written > max(PATIENCE, 5 * usual)

    def since(self, moment: float | None) -> str:
        """How long ago that was, in words."""
        return NONE if moment is None else f"{duration(self.now - moment)} ago"


def look(folder: str, log: Log) -> Look:
    """Reads what there is now. Raises UserError when the folder is no run's any more."""
    log.read()
    return Look(read(folder), log, newest(Path(folder) / "checkpoints"), time.time())


def newest(folder: Path) -> tuple[int, float] | None:
    """(step, when it was written in seconds since 1970) of the newest checkpoint, None where there is none."""
    try:
        found = [entry for entry in os.scandir(folder) if entry.name.isascii() and entry.name.isdigit()]
        last = max(found, key=lambda entry: int(entry.name), default=None)
        return None if last is None else (int(last.name), last.stat().st_mtime)
    except OSError:  # none yet, or it was removed just now
        return None


class Watch:
    """The runs in some folders, which are found once. warn: told of what cannot be read. Raises UserError when there is none."""

    def __init__(self, folders: Iterable[str], warn: Callable[[str], None]):
        self.logs = {run.path: Log(run.path) for run in listed(folders, warn)}
        self.trained = self.over = False

    def text(self, width: int | None = None) -> str:
        """How they are now: one in some lines, several in a line each, none longer than `width`, None for as long as it gets."""
        looks = [look(path, log) for path, log in self.logs.items()]
        self.trained = self.trained or any(each.run.running for each in looks)
        # A run that ended early while it was watched may be started again, and one that was found so is over.
        self.over = all(each.run.state == "finished" or not self.trained for each in looks)
        lines = details(looks[0], width) if len(looks) == 1 else table(looks, width)
        return "\n".join(
            line if width is None or len(line) <= width else line[: width - 1] + "\u2026" for line in lines
        )


def state(each: Look) -> str:
    """What the run is doing, in words."""
    written = each.since(each.log.written)
    if each.run.running:
        if not each.log.recent:
            return "running; no line yet: it reads its data or compiles"
        return f"running, but silent: its last line came {written}" if each.silent else f"running; last line {written}"
    if each.run.state == "stopped":
        return f"stopped: no process trains here; last line {written}"
    return each.run.state if each.log.written is None else f"{each.run.state}; last line {written}"


def details(each: Look, width: int | None) -> list[str]:
    """One run in some lines; what is not known is left out."""
    run, room = each.run, max(1, min(60, (width or 80) - 30))
    rows = {
        "step": _step(each),
        "loss": f"{_loss(each)}  {sparkline([*each.log.losses.values()], room)}" if each.log.recent else "",
        "score": ""
        if run.score is None
        else f"{run.score:.4f} {words(run.score_name)}, at step {run.evaluated['step']:,}",
        "speed": "  ".join(filter(None, (_speed(each), _percent(each, "mfu", "mfu ")))),
        "time": "  ".join(
            f"{words(name)} {share:.0%}" for name, share in shares(each.log.recent).items() if share >= 0.005
        ),
        "goodput": _percent(each, "goodput", "", " of the time since the first start"),
        "time left": "" if each.left is None else duration(each.left),
        "checkpoint": "" if each.saved is None else f"step {each.saved[0]:,}, {each.since(each.saved[1])}",
        "unreadable": f"{each.log.bad} lines of metrics.jsonl" if each.log.bad else "",
    }
    head = cut(printable(run.path), max(12, (width or 1000) - 2))
    return [head, state(each), *(f"{name:<10}  {text}" for name, text in rows.items() if text)]


def table(looks: list[Look], width: int | None) -> list[str]:
    """A line for each run; columns at the end go first where there is little room."""
    names = {each.run.score_name for each in looks}
    columns = {
        "folder": [printable(each.run.path) for each in looks],
        "state": ["silent" if each.silent else each.run.state for each in looks],
        "step": [f"{each.run.step:,}/{NONE if each.run.steps is None else f'{each.run.steps:,}'}" for each in looks],
        "loss": [_loss(each) for each in looks],
        "left": [NONE if each.left is None else duration(each.left) for each in looks],
        "last line": [each.since(each.log.written) for each in looks],
        words(*names) if len(names) == 1 else "score": [_score(each, len(names) > 1) for each in looks],
        "speed": [_speed(each) or NONE for each in looks],
        "mfu": [_percent(each, "mfu") or NONE for each in looks],
        "goodput": [_percent(each, "goodput") or NONE for each in looks],
        "curve": [sparkline([*each.log.losses.values()], 16) for each in looks],
    }
    cells = {name: [name, *found] for name, found in columns.items() if any(cell not in ("", NONE) for cell in found)}
    wide = {name: max(map(len, found)) + 2 for name, found in cells.items()}
    shortest = min(wide["folder"], 22)
    while width is not None and len(wide) > 2 and shortest + sum(wide.values()) - wide["folder"] - 2 > width:
        wide.popitem()
    if width is not None:
        room = max(12, width - sum(wide.values()) + wide["folder"])
        cells["folder"] = [cut(cell, room) for cell in cells["folder"]]
    shown = [aligned(cells[name], name in ("folder", "state")) for name in wide]
    bad = [
        f"{printable(each.run.path)}: {each.log.bad} lines of metrics.jsonl cannot be read"
        for each in looks
        if each.log.bad
    ]
    return ["  ".join(parts).rstrip() for parts in zip(*shown, strict=True)] + bad


def _step(each: Look) -> str:
    if each.share is None:
        return f"{each.run.step:,}"
    full = int(BAR * each.share)
    return f"{each.run.step:,} of {each.run.steps:,}  {'#' * full}{'.' * (BAR - full)}  {each.share:.0%}"


def _loss(each: Look) -> str:
    if not each.log.recent:
        return NONE
    loss = number(each.log.recent[-1]["loss"])
    return "not finite" if loss is None else f"{loss:.4f}"


def _score(each: Look, named: bool) -> str:
    name = f" {words(each.run.score_name)}" if named else ""
    return NONE if each.run.score is None else f"{each.run.score:.4f}{name}"


def _speed(each: Look) -> str:
    speed = each.run.of_line("tokens_per_s")
    return "" if speed is None else f"{speed:,.0f} tokens/s"


def _percent(each: Look, name: str, before: str = "", after: str = "") -> str:
    share = each.run.of_line(name)
    return "" if share is None else f"{before}{share:.0%}{after}"


def duration(seconds: float) -> str:
    """In the largest units that say enough: "12 s", "3 min 5 s", "2 h 10 min", "4 days 3 h"."""
    whole = max(0, round(seconds))
    for unit, parts, below, smaller in ((86400, "days", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            name = "day" if parts == "days" and whole < 2 * unit else parts
            rest = whole % unit // below
            return f"{whole // unit} {name}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def follow(watch: Watch, every: float) -> None:
    """Shows the runs on the terminal, anew every so many seconds, until all of them are over."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(Text(watch.text(console.width), no_wrap=True), refresh=True)
            if watch.over:
                return
            time.sleep(every)
