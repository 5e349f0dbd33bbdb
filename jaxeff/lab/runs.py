"""A table of training runs, best first: `table(listed(folders), ...)`. Reads JSON only; see `jaxeff.lab.folders`."""

import dataclasses
import difflib
import json
import operator
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxeff.core.errors import UserError, lookup, nearest
from jaxeff.lab.folders import Folder, find, held, number, printable, read, words

NONE = "\u2013"
COMPARISONS = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge,
}  # fmt: skip
CONSTANTS = {"true": True, "false": False, "none": None, "null": None}


def listed(folders: Iterable[str | os.PathLike], warn: Callable[[str], None]) -> list[Folder]:
    """The runs in these folders, each once; `warn` is told, in a line each, of what cannot be read and where there is none.

    Raises UserError when a folder is not there, or there is no run at all.
    """
    folders = [os.fspath(folder) for folder in folders]
    found: dict[str, Folder] = {}
    broken = 0
    for folder in folders:
        paths = list(find(folder, warn))
        if not paths and len(folders) > 1:
            warn(f"{printable(folder)} holds no training run")
        for path in paths:
            try:
                found.setdefault(os.path.realpath(path), read(path))
            except UserError as error:
                broken += 1
                warn(str(error))
    if not found:
        yet = " yet: a process there has not done its first step" if any(map(held, folders)) else ""
        none = f"no training run{yet} (no run.json in it or in its folders)"
        what = "no training run that can be read" if broken else none
        raise UserError(f"{printable(', '.join(folders))}: {what}")
    return list(found.values())


def fields(config) -> dict[str, Any]:
    """Dotted path -> value of a config as JSON data; that of a dataclass is its class's name, a list of plain values is one."""
    return dict(_fields(config, ""))


def _fields(data, prefix: str):
    if isinstance(data, dict):
        if prefix:
            yield prefix, str(data.get("type", "")).rpartition(".")[2]
        for name, item in data.items():
            if name != "type":
                yield from _fields(item, f"{prefix}.{name}" if prefix else name)
    elif isinstance(data, list) and any(isinstance(item, (dict, list)) for item in data):
        for i, item in enumerate(data):
            yield from _fields(item, f"{prefix}.{i}")
    else:
        yield prefix, data


def text(value) -> str:
    """A config's value as it is written after --set."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value)


@dataclasses.dataclass(frozen=True)
class Condition:
    """A comparison of a config field, such as `optim.lr>1e-3`."""

    path: str
    sign: str
    value: Any
    source: str

    @classmethod
    def parse(cls, source: str) -> "Condition":
        """From PATH=VALUE, or another sign of COMPARISONS. Raises UserError for what is none, and for < of what is no number."""
        parts = re.fullmatch(r"\s*([^\s=!<>]+)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*", source, re.DOTALL)
        if parts is None:
            raise UserError(f"--where {source}: expected PATH=VALUE, or != < > <= >=, such as optim.name=adamw")
        path, sign, value = parts[1], parts[2], _value(parts[3])
        if sign[0] in "<>" and number(value) is None:
            raise UserError(f"--where {source}: {sign} compares numbers, found {parts[3]!r}")
        return cls(path, sign, value, source)

    def holds(self, found: dict[str, Any]) -> bool:
        """Whether a config's fields fit it; a field that is not there differs from everything."""
        there = found.get(self.path, ...)
        if self.sign[0] in "<>":
            return number(there) is not None and COMPARISONS[self.sign](there, self.value)
        return there is not ... and _equal(there, self.value) if self.sign != "!=" else not _equal(there, self.value)


def _value(source: str) -> Any:
    if source.lower() in CONSTANTS:
        return CONSTANTS[source.lower()]
    try:
        return json.loads(source)
    except ValueError:
        pass
    try:
        return float(source)
    except ValueError:
        return source


def _equal(there, wanted) -> bool:
    if isinstance(there, str):
        return _plain(there) == _plain(text(wanted))
    return isinstance(there, bool) is isinstance(wanted, bool) and there == wanted


def _plain(name: str) -> str:
    """Names of classes are compared as --set takes them: `sentence_piece` is SentencePiece."""
    return name.replace("_", "").casefold()


def chosen(runs: Sequence[Folder], conditions: Iterable[str]) -> list[Folder]:
    """The runs that fit every condition. Raises UserError for one that cannot be read, and for a field that no run has."""
    wanted = [Condition.parse(source) for source in conditions]
    configs = [fields(run.config) for run in runs]
    for condition in wanted:
        known(configs, condition.path, f"--where {condition.source}")
    return [run for run, found in zip(runs, configs) if all(condition.holds(found) for condition in wanted)]


def known(configs: Sequence[dict[str, Any]], path: str, asked: str) -> None:
    """Raises UserError, with the nearest, when no config has the field."""
    names = {name for found in configs for name in found}
    if path not in names:
        raise UserError(f"{asked}: no run has a field {path!r}; {_nearest(path, names)}")


def _nearest(path: str, names: set[str]) -> str:
    """Paths that end alike are near, and so are those spelled alike."""
    last = path.rpartition(".")[2]
    same = sorted(name for name in names if name.rpartition(".")[2] == last)
    if same and not difflib.get_close_matches(path, names, cutoff=0.85):
        return "did you mean " + " or ".join(map(repr, same[:3])) + "?"
    return nearest(path, names)


@dataclasses.dataclass(frozen=True)
class Column:
    """Heading, text of a cell, and what rows are sorted by, lower first, None for last. rank: narrow tables lose the highest
    first, and never one of 0."""

    title: str
    cell: Callable[[Folder], str]
    key: Callable[[Folder], Any]
    rank: int = 0
    left: bool = False


def columns(runs: Sequence[Folder], show: Sequence[str] = ()) -> dict[str, Column]:
    """All columns by name; `show`: paths of config fields. Raises UserError for a field that no run has."""
    configs = {run.path: fields(run.config) for run in runs}
    for path in show:
        known(list(configs.values()), path, f"--show {path}")
    names = {run.score_name for run in runs}
    heading = words(*names) if len(names) == 1 else "score"
    found = {
        "folder": Column("folder", lambda run: printable(run.path), lambda run: run.path, left=True),
        "step": Column("step", _step, lambda run: run.step, 3),
        "state": Column("state", lambda run: run.state, lambda run: run.state, 2, left=True),
        "score": Column(heading, lambda run: _score(run, len(names) > 1), lambda run: (run.score_name, run.badness())),
        "loss": _number("loss", 4, "{:.4f}"),
        "tokens": _number("tokens", 5, "{:,}"),
        "seconds": _number("seconds", 7, "{:,.0f}"),
        "written": Column("written", lambda run: run.when, lambda run: -run.written, 6, left=True),
    }
    for rank, name in enumerate(("mfu", "goodput"), 8):
        if any(run.of_line(name) is not None for run in runs):
            found[name] = _number(name, rank, "{:.0%}")
    return found | {path: _field(path, configs) for path in show}


def _step(run: Folder) -> str:
    return f"{run.step}/{NONE if run.steps is None else run.steps}"


def _score(run: Folder, named: bool) -> str:
    name = f" {words(run.score_name)}" if named else ""
    return NONE if run.score is None else f"{run.score:.4f}{name}"


def _number(name: str, rank: int, form: str) -> Column:
    def cell(run: Folder) -> str:
        value = run.of_line(name)
        return NONE if value is None else form.format(value)

    return Column(name, cell, lambda run: run.of_line(name), rank)


def _field(path: str, configs: dict[str, dict[str, Any]]) -> Column:
    def cell(run: Folder) -> str:
        found = configs[run.path]
        return printable(text(found[path])) if path in found else NONE

    def key(run: Folder):
        value = configs[run.path].get(path)
        return None if value is None else (1, text(value)) if number(value) is None else (0, value)

    return Column(path, cell, key, left=not all(number(found.get(path, 0)) is not None for found in configs.values()))


def ordered(runs: Sequence[Folder], by: Column) -> list[Folder]:
    """Lowest key first, those without one last, equal ones by folder."""
    there = [run for run in runs if by.key(run) is not None]
    rest = [run for run in runs if by.key(run) is None]
    return sorted(sorted(there, key=lambda run: run.path), key=by.key) + sorted(rest, key=lambda run: run.path)


def table(runs: Sequence[Folder], show: Sequence[str] = (), sort: str = "score", width: int | None = None) -> str:
    """The runs as aligned text, sorted by a column: the best score first, the newest write first, the lowest of anything else.

    width: of the terminal, None for as wide as it gets; where there is too little, columns are left out, and named below. Raises
    UserError for a field that no run has, and for a column that there is not.
    """
    found = columns(runs, show)
    rows = ordered(runs, lookup(found, sort, "column"))
    cells = {name: [column.title, *map(column.cell, rows)] for name, column in found.items()}
    kept = _fitting(found, cells, width)
    if width is not None:
        room = width - sum(_width(cells[name]) + 2 for name in kept if name != "folder")
        cells["folder"] = [cut(cell, max(room, 12)) for cell in cells["folder"]]
    columns_of_text = [aligned(cells[name], found[name].left) for name in kept]
    body = ["  ".join(parts).rstrip() for parts in zip(*columns_of_text, strict=True)]
    left_out = [name for name in found if name not in kept]
    notes = [f"left out for want of room: {', '.join(left_out)}"] if left_out else []
    return "\n".join(body + notes + _notes(runs))


def _notes(runs: Sequence[Folder]) -> list[str]:
    texts = {_text_of(run) for run in runs}
    return [f"the runs are of {len(texts)} texts: scores compare within one text only"] if len(texts) > 1 else []


def _text_of(run: Folder) -> str:
    data = run.run.get("data")
    return str((data.get("corpus_fingerprint") if isinstance(data, dict) else None) or run.run["corpus"])


def _fitting(found: dict[str, Column], cells: dict[str, list[str]], width: int | None) -> list[str]:
    kept = list(found)
    while width is not None and sum(_width(cells[name]) + 2 for name in kept) - 2 > width:
        least = max(kept, key=lambda name: found[name].rank)
        if found[least].rank == 0:
            break
        kept.remove(least)
    return kept


def _width(cells: list[str]) -> int:
    return max(map(len, cells))


def cut(path: str, room: int) -> str:
    """A path's end tells more than its beginning."""
    return path if len(path) <= room else "\u2026" + path[len(path) - room + 1 :]


def aligned(cells: list[str], left: bool) -> list[str]:
    """All as wide as the widest, filled up on the right (left=True) or on the left."""
    width = _width(cells)
    return [cell.ljust(width) if left else cell.rjust(width) for cell in cells]
