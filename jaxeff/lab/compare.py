"""Two runs beside each other: `compare(a, b)` is text. Reads JSON only; see `jaxeff.lab.folders`.

It tells what differs. Whether a difference is more than chance it does not tell: that takes several seeds of each, as
`jaxeff ablate` trains them.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

from jaxeff.lab.folders import Folder, curve, lines, printable, read, words
from jaxeff.lab.runs import NONE, fields, text
from jaxeff.lab.text_chart import Curve, chart, value
from jaxeff.train.config_json import MISSING, diff

NAMES = ("A", "B")
LAST, POINTS, ENOUGH = 5, 5, 3
CELL = 40  # characters of a config's value
SEEDS = """One seed each: this is the difference of these two runs. Whether it is more than chance takes several seeds
of each (jaxeff ablate)."""


def compare(a: str | os.PathLike, b: str | os.PathLike, warn: Callable[[str], None], width: int = 60) -> str:
    """Configs, scores at the end and curves of the runs in two folders.

    warn: told in a line of metrics that cannot be read. width: of the chart's field. Raises UserError when a folder holds no run
    that can be read.
    """
    runs = read(a), read(b)
    logs = lines(a, warn), lines(b, warn)
    parts = [
        heads(runs),
        "\n".join(f"warning: {line}" for line in warnings(*runs)),
        configs(*runs),
        scores(runs, logs),
        curves(runs, logs, width),
    ]
    return "\n\n".join(part for part in parts if part)


def heads(runs: Sequence[Folder]) -> str:
    """Which is A and which is B, and how far they are."""
    rows = [
        [name, printable(run.path), f"step {run.step} of {NONE if run.steps is None else run.steps}", run.state]
        for name, run in zip(NAMES, runs, strict=True)
    ]
    return _table(rows, "llll")


def warnings(a: Folder, b: Folder) -> list[str]:
    """Why the scores of two runs do not compare, or only with care; a line each."""
    found = []
    if a.score_name != b.score_name:
        found.append(f"A follows {words(a.score_name)}, B {words(b.score_name)}: their scores do not compare")
    data = _differing_data(a, b)
    if data is not None:
        what, name, identities = data
        ends = "bits per byte compare, no other score does" if what == "tokenizers" else "their scores do not compare"
        found.append(f"the {what} differ ({name} {_short(identities[0])} and {_short(identities[1])}): {ends}")
    limits = [_evaluated(run.config) for run in (a, b)]
    if limits[0] != limits[1]:
        found.append(f"A was evaluated on {limits[0]} of the validation split, B on {limits[1]}: compare with care")
    return found


def comparable(a: Folder, b: Folder) -> bool:
    """Whether the runs follow one score, on one text, by one tokenizer unless the score counts bytes."""
    data = _differing_data(a, b)
    fine = data is None or (data[0] == "tokenizers" and a.score_name == "bits_per_byte")
    return fine and a.score_name == b.score_name


def _differing_data(a: Folder, b: Folder) -> tuple[str, str, list[Any]] | None:
    """(what differs, the name of its identity, both identities), None where both read the same."""
    parts = [run.run.get("data") if isinstance(run.run.get("data"), dict) else {} for run in (a, b)]
    for what, name in (("texts", "corpus_fingerprint"), ("tokenizers", "tokenizer")):
        found = [part.get(name) for part in parts]
        if found[0] != found[1]:
            return what, name.replace("corpus_", ""), found
    corpora = [run.run["corpus"] for run in (a, b)]
    # Rows of another length are of the same text: their scores compare, at other lengths of context.
    if None in (part.get("corpus_fingerprint") for part in parts) and corpora[0] != corpora[1]:
        return "data", "fingerprint", corpora
    return None


def _short(fingerprint) -> str:
    return printable(fingerprint)[:12] if fingerprint else "unknown"


def _evaluated(config: dict[str, Any]) -> str:
    found = fields(config)
    limit = found.get("train.eval_batches")
    return "all" if limit is None else f"{limit} batches of {found.get('data.batch_size')} rows"


def configs(a: Folder, b: Folder) -> str:
    """The fields in which the configs differ, as a table."""
    found = diff(a.config, b.config)
    other = {path.removesuffix(".type") for path, *values in found if path.endswith(".type") and MISSING not in values}
    rows = [
        [path.removesuffix(".type"), _value(path, x), _value(path, y)]
        for path, x, y in found
        if not _of_one_class_only(path, (x, y), other)
    ]
    return _table([["config", *NAMES], *rows], "lll") if rows else "config: no field differs"


def _of_one_class_only(path: str, values: Sequence[Any], other: set[str]) -> bool:
    """Whether a field tells nothing: below a place where the classes differ, only one has it, and it is not set there."""
    unset = MISSING in values and any(value is None or value == [] for value in values)
    return unset and any(path.startswith(f"{place}.") for place in other)


def _value(path: str, found) -> str:
    if found is MISSING:
        return NONE
    shown = printable(str(found).rpartition(".")[2] if path.endswith(".type") else text(found))
    return shown if len(shown) <= CELL else shown[: CELL - 1] + "\u2026"


def scores(runs: Sequence[Folder], logs: Sequence[list[dict[str, Any]]]) -> str:
    """The last evaluations, their difference, and how far the last few of each lie apart."""
    a, b = runs
    rows = [["at the end", *NAMES, "B - A"]]
    for name in dict.fromkeys((a.score_name, b.score_name)):
        values = [run.evaluated.get(f"eval_{name}") for run in runs]
        rows.append([f"validation {words(name)}", *_cells(values, "{:.4f}")])
    rows.append(["  evaluated at step", *_cells([run.evaluated.get("step") for run in runs], "{}", False)])
    for name, form in (("loss", "{:.4f}"), ("tokens", "{:,}"), ("seconds", "{:,.0f}")):
        title = "training loss" if name == "loss" else name
        rows.append([title, *_cells([run.of_line(name) for run in runs], form)])
    said = [_table(rows, "lrrr")]
    if comparable(a, b) and a.score is not None and b.score is not None:
        ahead = (
            "both are equal"
            if a.score == b.score
            else f"{'A' if a.badness() < b.badness() else 'B'} is ahead by {abs(b.score - a.score):.4f}"
        )
        way = "higher" if a.higher_is_better else "lower"
        said += [f"{words(a.score_name)}, {way} is better: {ahead}", SEEDS]
        said += spread(runs, logs)
    return "\n".join(said)


def _cells(values: Sequence[Any], form: str, difference: bool = True) -> list[str]:
    shown = [NONE if v is None else form.format(v) for v in values]
    if not difference or None in values:
        return [*shown, NONE if difference else ""]
    gap = values[1] - values[0]
    return [*shown, form.replace("{:", "{:+").format(gap)]


def spread(runs: Sequence[Folder], logs: Sequence[list[dict[str, Any]]]) -> list[str]:
    """How far the last few evaluations of each run lie apart, in a line; none where one was evaluated once."""
    found = [curve(log, f"eval_{run.score_name}") for run, log in zip(runs, logs, strict=True)]
    last = min(LAST, *map(len, found))
    if last < 2:
        return []
    ranges = []
    for name, points in zip(NAMES, found, strict=True):
        values = [y for _, y in points[-last:]]
        ranges.append(f"{name} {min(values):.4f} to {max(values):.4f} (spread {max(values) - min(values):.4f})")
    told = f"last {last} evaluations: {', '.join(ranges)}"
    return [told, "(how far training moved the score meanwhile: no interval)"]


def curves(runs: Sequence[Folder], logs: Sequence[list[dict[str, Any]]], width: int = 60) -> str:
    """A chart of both runs over tokens, of the score where both were evaluated a few times, else of the training loss; and
    both at a few points that they have in common."""
    title, found = _drawn(runs, logs)
    if not any(found):
        return ""
    head = f"{title} over tokens: o A, x B, # both"
    return "\n".join([head, chart(found, width=width), *_points(found)])


def _drawn(runs: Sequence[Folder], logs) -> tuple[str, list[Curve]]:
    names = {run.score_name for run in runs}
    if len(names) == 1:
        (name,) = names
        found = [curve(log, f"eval_{name}") for log in logs]
        if min(map(len, found)) >= ENOUGH:
            return f"validation {words(name)}", found
    return "training loss (nats per token, as logged)", [curve(log, "loss") for log in logs]


def _points(found: Sequence[Curve]) -> list[str]:
    if not all(found):
        return []
    first, last = max(points[0][0] for points in found), min(points[-1][0] for points in found)
    if last <= first:
        return ["", "the curves have no stretch of tokens in common"] if last < first else []
    places = [first + (last - first) * i / (POINTS - 1) for i in range(POINTS)]
    rows = [["tokens", *NAMES, "B - A"]]
    for place in places:
        rows.append([f"{place:,.0f}", *_cells([value(points, place) for points in found], "{:.4f}")])
    return ["", _table(rows, "rrrr"), "between two logged points: on the straight line between them"]


def _table(rows: Sequence[Sequence[str]], sides: str) -> str:
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in rows
    )
