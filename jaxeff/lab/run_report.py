"""A page about one training run: `write(folder)`. One file with no outside resource; `jaxeff.lab.style` says how it looks."""

import datetime
import html
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxeff.core.files import write_text
from jaxeff.lab.folders import Folder, lines, number, printable, read, words
from jaxeff.lab.plots import Plot, inline
from jaxeff.lab.run_curves import plot
from jaxeff.lab.runs import NONE, fields, text
from jaxeff.lab.style import document

OWN = """
dl.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: .7rem; max-width: none;
  margin: 1.4rem 0; }
.tiles div { background: var(--wash); border-left: 4px solid var(--mark); padding: .55rem .9rem; break-inside: avoid; }
.tiles dd { font-size: 1.2rem; margin: 0; } .tiles dd small { display: block; font-size: .82rem; color: var(--soft); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; break-after: avoid; }
.config { columns: 24rem 3; column-gap: 2rem; }
.config section { margin-bottom: 1.4rem; } .config h3 { margin-top: 0; }
.config table { width: 100%; }
.config th[scope=row], .config td { white-space: normal; overflow-wrap: break-word; text-align: left; vertical-align: top;
  font-weight: 400; padding-left: 0; }
.config th[scope=row] { color: var(--soft); width: 60%; max-width: none; }
.note { color: var(--soft); }
@media print { .config { columns: 2; } dl.tiles { grid-template-columns: repeat(3, 1fr); } }
"""
SHARES = {
    "mfu": "of the devices' peak, by the model's own products, up to the last line",
    "goodput": "of the time since the first start, restarts included",
}
CHANGED = 10  # files that differ from a commit, listed by name


def write(folder: str | os.PathLike, out: str | os.PathLike | None = None, warn: Callable[[str], None] = print) -> Path:
    """Writes the page of the run in a folder to `out`, or to report.html there, and returns where it lies.

    warn: told in a line of metrics that cannot be read. Raises UserError when the folder holds no run that can be read, and
    where the file system refuses.
    """
    run = read(folder)
    notes: list[str] = []
    log = lines(folder, notes.append)
    for note in notes:
        warn(note)
    path = Path(folder) / "report.html" if out is None else Path(out)
    write_text(path, page(run, log, notes))
    return path


def page(run: Folder, log: list[dict[str, Any]], notes: Iterable[str] = ()) -> str:
    """The whole page as HTML text; `notes`: lines to stand above everything."""
    name = printable(Path(run.path).resolve().name)
    starts = [start for start in _list(run.run["starts"]) if isinstance(start, dict)]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    body = [
        f"<h1>Run: {_(name)}</h1>",
        f'<p class="lead">{_(_about(run))}</p>',
        f'<p class="date">Page written on <time datetime="{now}">{now[:16].replace("T", " ")} UTC</time>; last write of the run on '
        f"{_(run.when)}, local time.</p>",
        *(f'<p class="note">{_(note)}</p>' for note in notes),
        tiles(run, starts),
        _section("curves", "Curves", figure(plot(run, log))),
        _section("evaluation", "Last evaluation", evaluation(run)),
        _section("config", "Config", config(run.config)),
        _section("data", "Data", data(run.run.get("data"))),
        _section(
            "starts", "Starts", "".join(start(i, found) for i, found in enumerate(starts, 1)) or "<p>None recorded.</p>"
        ),
        "<footer>Written by jaxeff from run.json and metrics.jsonl of the run's folder.</footer>",
    ]
    return document(f"Run: {printable(name)}", body, OWN)


def _(value) -> str:
    return html.escape(printable(value))


def _list(value) -> list:
    return value if isinstance(value, list) else []


def _section(name: str, title: str, body: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{_(title)}</h2>\n{body}</section>'


def _about(run: Folder) -> str:
    found = fields(run.config)
    parts = [f"{found[name]}" for name in ("data.source", "optim.name") if isinstance(found.get(name), str)]
    lr = number(found.get("optim.lr"))
    return ", ".join(
        [*parts, *([f"learning rate {lr:g}"] if lr is not None else []), f"seed {text(found.get('seed'))}"]
    )


def tiles(run: Folder, starts: list[dict[str, Any]]) -> str:
    """The headline: score, steps, tokens, time, device."""
    tokens, seconds, loss, skipped = (run.of_line(name) for name in ("tokens", "seconds", "loss", "skipped"))
    at = "not evaluated yet" if run.score is None else f"at step {run.evaluated['step']}"
    found = [
        (f"validation {words(run.score_name)}", NONE if run.score is None else f"{run.score:.4f}", at),
        ("steps", f"{run.step:,}", f"of {NONE if run.steps is None else f'{run.steps:,}'}, {run.state}"),
        ("training loss", NONE if loss is None else f"{loss:.4f}", "nats per token, last logged batch"),
        ("tokens trained on", NONE if tokens is None else f"{tokens:,}", ""),
        ("time", NONE if seconds is None else _clock(seconds), "of training and compiling, without evaluation"),
        ("device", starts[-1].get("device", NONE) if starts else NONE, "of the last start"),
    ]
    for name, more in SHARES.items():
        if (share := run.of_line(name)) is not None:
            found.append((name, f"{share:.1%}", more))
    if skipped:
        found.append(("steps skipped", f"{skipped:,}", "their loss or gradient was not finite"))
    cells = (f"<div><dt>{_(name)}</dt><dd>{_(value)}<small>{_(more)}</small></dd></div>" for name, value, more in found)
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def figure(drawn: Plot | None) -> str:
    """The curves with their caption."""
    if drawn is None:
        return "<p>Nothing was logged yet.</p>"
    panels = "".join(f'<div class="panel">{svg}</div>' for svg in inline(drawn))
    return f'<figure><div class="panels">{panels}</div><figcaption>{_(drawn.caption)}</figcaption></figure>'


def evaluation(run: Folder) -> str:
    """All scores of the last evaluation on the validation split."""
    found = {name.removeprefix("eval_"): value for name, value in run.evaluated.items() if name.startswith("eval_")}
    if not found:
        return "<p>There was none yet.</p>"
    rows = [(words(name), NONE if number(value) is None else f"{value:.4f}") for name, value in found.items()]
    limit = number(_train(run).get("eval_batches"))
    part = "" if limit is None else f"the first {limit:,} batches of "
    return f"<p>On {part}the validation split, at step {run.evaluated['step']:,}.</p>" + _terms(dict(rows))


def _train(run: Folder) -> dict[str, Any]:
    found = run.config.get("train")
    return found if isinstance(found, dict) else {}


def config(data: Mapping[str, Any]) -> str:
    """The config as a table for each of its parts; fields that are not set are named below."""
    groups: dict[str, dict[str, Any]] = {}
    for path, value in fields(data).items():
        part, _dot, rest = path.partition(".")
        nested = isinstance(data.get(part), (dict, list)) and (rest or isinstance(data[part], dict))
        groups.setdefault(part if nested else "experiment", {})[rest if nested else part] = value
    return f'<div class="config">{"".join(_group(name, found) for name, found in groups.items())}</div>'


def _group(name: str, found: dict[str, Any]) -> str:
    kind = found.pop("", None)
    unset = [path for path, value in found.items() if value is None or value == []]
    rows = "".join(
        f'<tr><th scope="row">{_path(path)}</th><td>{_(text(value))}</td></tr>'
        for path, value in found.items()
        if path not in unset
    )
    if unset:
        rows += f'<tr><td colspan="2" class="note">not set: {", ".join(map(_path, unset))}</td></tr>'
    title = _(f"{name}: {kind}" if kind else name)
    return f"<section><h3>{title}</h3><table><tbody>{rows}</tbody></table></section>"


def _path(path: str) -> str:
    """It may be broken after a dot."""
    return _(path).replace(".", ".<wbr>")


def data(found) -> str:
    """What the data are: a table over the splits, and the rest as terms."""
    if not isinstance(found, dict) or not found:
        return "<p>Nothing was recorded.</p>"
    by_split = {name: value for name, value in found.items() if isinstance(value, dict)}
    splits = list(dict.fromkeys(split for value in by_split.values() for split in value))
    table = ""
    if splits:
        heads = "".join(f'<th scope="col">{_(split)}</th>' for split in splits)
        rows = "".join(
            f'<tr><th scope="row">{_(name)}</th>{"".join(f"<td>{_cell(value.get(split))}</td>" for split in splits)}</tr>'
            for name, value in by_split.items()
        )
        table = (
            '<div class="scroll" tabindex="0" role="region" aria-label="The data by split"><table><thead><tr>'
            f'<th scope="col" class="first">split</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
        )
    rest = {words(name): _plain(value) for name, value in found.items() if name not in by_split}
    return table + _terms(rest)


def _cell(value) -> str:
    return NONE if value is None else _(_plain(value))


def _plain(value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if type(value) is int else text(value)


def start(i: int, found: dict[str, Any]) -> str:
    """Where and with what the run began, or went on."""
    command = [str(word) for word in _list(found.get("command"))]
    packages = found.get("packages") if isinstance(found.get("packages"), dict) else {}
    versions = [f"{name} {version}" for name, version in packages.items() if version is not None]
    terms = {
        "time": found.get("time"),
        "command": shlex.join(command),
        "device": found.get("device"),
        "host": found.get("host"),
        "system": found.get("platform"),
        "mesh": _mesh(found.get("mesh")),
        "processes": found.get("processes"),
        "Python": found.get("python"),
        "jaxeff": found.get("jaxeff"),
        "packages": ", ".join(versions),
        "git": _git(found.get("git")),
        "XLA flags": found.get("xla_flags"),
    }
    return f"<h3>{i}. at step {_(found.get('step', NONE))}</h3>" + _terms(
        {k: v for k, v in terms.items() if v not in (None, "")}
    )


def _mesh(found) -> str:
    return ", ".join(f"{name} {size}" for name, size in found.items()) if isinstance(found, dict) else ""


def _git(found) -> str:
    if not isinstance(found, dict):
        return "no repository"
    changed = [str(name).strip() for name in _list(found.get("changed"))]
    more = f" and {len(changed) - CHANGED} more" if len(changed) > CHANGED else ""
    state = f"with changes: {', '.join(changed[:CHANGED])}{more}" if changed else "without changes"
    return f"commit {found.get('commit')}, {state}"


def _terms(found: Mapping[str, Any]) -> str:
    return "<dl>" + "".join(f"<dt>{_(name)}</dt><dd>{_(value)}</dd>" for name, value in found.items()) + "</dl>"
