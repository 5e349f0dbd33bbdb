"""Training runs as their folders tell of them: found, and read as JSON alone, without JAX and without their weights.

find(folder)    the folders of runs in it
read(folder)    one of them as a `Folder`
lines(folder)   its metrics
"""

import dataclasses
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxeff.core.errors import UserError, nearest
from jaxeff.train.run_files import line_of, read_run

DEPTH = 4  # of an ablation's runs below its folder: runs/MODEL/seed-0, and one more
CAUSAL = "jaxeff.objectives.causal.Causal"


@dataclasses.dataclass(frozen=True)
class Folder:
    """What a run's folder tells.

    run: run.json. step: the last one that was logged or saved. line: the last logged one, {} where there is none. evaluated: the
    last one with an evaluation, {} as well. written: of the last write, in seconds since 1970.
    """

    path: str
    run: dict[str, Any]
    step: int
    line: dict[str, Any]
    evaluated: dict[str, Any]
    running: bool
    written: float

    @property
    def config(self) -> dict[str, Any]:
        """The config as JSON data."""
        return self.run["config"]

    @property
    def steps(self) -> int | None:
        """The steps that it is to have."""
        return whole(_part(self.config, "train").get("steps"))

    @property
    def state(self) -> str:
        """In a word: running, finished, stopped or not begun."""
        if self.running:
            return "running"
        if self.steps is not None and self.step >= self.steps:
            return "finished"
        return "stopped" if self.step else "not begun"

    @property
    def score_name(self) -> str:
        """Of the score that the run follows."""
        return followed(_part(self.config, "objective"))[0]

    @property
    def higher_is_better(self) -> bool:
        """Of that score."""
        return followed(_part(self.config, "objective"))[1]

    @property
    def score(self) -> float | None:
        """The last evaluation's."""
        return number(self.evaluated.get(f"eval_{self.score_name}"))

    @property
    def when(self) -> str:
        """The last write, in local time."""
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.written))

    def of_line(self, name: str) -> float | None:
        """A number of the last logged line."""
        return number(self.line.get(name))

    def badness(self) -> float:
        """Of the score: lower is better; infinite where there is none."""
        return math.inf if self.score is None else -self.score if self.higher_is_better else self.score


def words(score_name: str) -> str:
    """A score's name in words, on one line."""
    return printable(score_name).replace("_", " ")


def number(value) -> float | int | None:
    """A finite number as it is, None for anything else."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if usable else None


def whole(value) -> int | None:
    """A whole number as it is, None for anything else."""
    return value if type(value) is int else None


def printable(text) -> str:
    """Text on one line, without what a terminal would obey."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(text))


def _part(data, name: str) -> dict[str, Any]:
    part = data.get(name)
    return part if isinstance(part, dict) else {}


_FOLLOWED: dict[str, tuple[str, bool]] = {}


def followed(objective: dict[str, Any]) -> tuple[str, bool]:
    """(name, whether higher is better) of the score that an objective, as JSON data, follows.

    That of next-token prediction is told by its fields. Of another objective it is asked, where its class is there; where it is
    not, it is the loss.
    """
    follow = objective.get("follow")
    if objective.get("type") == CAUSAL and isinstance(follow, str):
        return follow, follow == "accuracy"
    key = json.dumps(objective, sort_keys=True)
    if key not in _FOLLOWED:
        _FOLLOWED[key] = _asked(objective)
    return _FOLLOWED[key]


def _asked(objective: dict[str, Any]) -> tuple[str, bool]:
    from jaxeff.train.config_json import from_json

    try:
        name, higher_is_better = from_json(objective).score
    except (UserError, AttributeError, TypeError, ValueError):
        return "loss", False
    return str(name), bool(higher_is_better)


def find(folder: str | os.PathLike, warn: Callable[[str], None], depth: int = DEPTH) -> Iterator[str]:
    """The folders with a run.json: `folder` itself, or those in it down to `depth` levels; within a run there is no other.

    Hidden folders are passed over, and `warn` is told of those that cannot be looked into. Raises UserError when `folder` is none.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise UserError(f"{printable(folder)} is not a folder; {_beside(folder)}")
    seen: set[str] = set()
    yield from _find(folder, depth, warn, seen)


def _find(folder: str, depth: int, warn: Callable[[str], None], seen: set[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        warn(f"{printable(folder)} cannot be read: {error.strerror}")
        return
    if any(entry.name == "run.json" for entry in entries):
        yield folder
    elif depth:
        for entry in entries:
            if not entry.name.startswith(".") and _is_folder(entry):
                yield from _find(entry.path, depth - 1, warn, seen)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _beside(folder: str) -> str:
    """The end of a message: folders with a name like that of one that is not there."""
    parent = Path(folder).parent
    try:
        return nearest(Path(folder).name, [entry.name for entry in os.scandir(parent) if _is_folder(entry)])
    except OSError:
        return f"there is no {printable(parent)} either"


def read(folder: str | os.PathLike) -> Folder:
    """What the folder of a run tells. Raises UserError when it is none, or run.json cannot be read as a run's."""
    folder = os.fspath(folder)
    run = _run(Path(folder))
    content = _content(folder)
    last, evaluated = _last(content), {}
    if (at := content.rfind(b'"eval_')) >= 0:
        end = content.find(b"\n", at)
        evaluated = _last(content[: len(content) if end < 0 else end], b'"eval_')
    saved, times = _saved(Path(folder))
    step = max(last.get("step", 0), saved)
    return Folder(folder, run, step, last, evaluated, held(folder), max(times, default=0.0))


def _run(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"{printable(folder)} is not a folder; {_beside(str(folder))}")
    run = read_run(folder)
    if run is None:
        yet = " yet: a process there has not done its first step" if held(folder) else ""
        raise UserError(f"{printable(folder)} holds no training run{yet} (no run.json)")
    return run


def _content(folder: str) -> bytes:
    try:
        return Path(folder, "metrics.jsonl").read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UserError(f"{printable(folder)}/metrics.jsonl cannot be read: {error.strerror}") from None


def _last(content: bytes, mark: bytes = b"") -> dict[str, Any]:
    """The last line with `mark` that can be read, {} where none can."""
    end = len(content)
    while end > 0:
        begin = content.rfind(b"\n", 0, end) + 1
        text = content[begin:end]
        if mark in text and (line := line_of(text)) is not None:
            return line
        end = begin - 1
    return {}


def _saved(folder: Path) -> tuple[int, list[float]]:
    """(step of the newest checkpoint, when the folder's parts were written)"""
    times, steps = [], [0]
    for path in (folder / "run.json", folder / "metrics.jsonl", folder / "checkpoints"):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    try:
        steps += [int(name) for name in os.listdir(folder / "checkpoints") if name.isascii() and name.isdigit()]
    except OSError:
        pass
    return max(steps), times


def held(folder: str | os.PathLike) -> bool:
    """Whether a process trains there: whether it holds the folder's `lock`. It is asked for an instant, as a reader."""
    try:
        with open(Path(folder) / "lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def lines(folder: str | os.PathLike, warn: Callable[[str], None]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that can be read, oldest first; a step that stands there twice counts as it did last.

    warn: told how many others there are, but for a last one that is being written. Raises UserError when the file cannot be read.
    """
    *complete, rest = _content(os.fspath(folder)).split(b"\n")
    found, bad = {}, 0
    for text in [*complete, rest]:
        line = line_of(text)
        if line is not None:
            found.pop(line["step"], None)
            found[line["step"]] = line
        elif text.strip() and text is not rest:
            bad += 1
    if bad:
        warn(f"{printable(folder)}/metrics.jsonl: {bad} line{'s' * (bad > 1)} cannot be read, the others are shown")
    return list(found.values())


def curve(found: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """(tokens, value) wherever a line has both."""
    pairs = ((number(line.get("tokens")), number(line.get(name))) for line in found)
    return sorted((x, y) for x, y in pairs if x is not None and y is not None)
