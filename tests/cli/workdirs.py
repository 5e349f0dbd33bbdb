"""Workdirs for the tests of commands that read them: one real run, and copies whose files were edited."""

import json
import shutil
from pathlib import Path

from jaxeff.cli import main


def refused(capsys, *words) -> str:
    """The one line that a command leaves on stderr, with exit code 2."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("jaxeff: error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    return err


def said(capsys, *words) -> str:
    """What a command prints; nothing on stderr."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    return found.out


def copied(run: Path, target: Path, **changes) -> Path:
    """A copy, without its checkpoints' content, whose config has other values at these paths (`__` for a dot)."""
    target.mkdir(parents=True)
    for name in ("run.json", "metrics.jsonl", "lock"):
        shutil.copy(run / name, target)
    for path in (run / "checkpoints").iterdir():
        (target / "checkpoints" / path.name).mkdir(parents=True)
    edited(target, changes)
    return target


def edited(run: Path, changes: dict) -> None:
    """Sets values of run.json's config."""
    body = json.loads((run / "run.json").read_text())
    for path, value in changes.items():
        *outer, last = path.split("__")
        place = body["config"]
        for name in outer:
            place = place[name]
        place[last] = value
    (run / "run.json").write_text(json.dumps(body))


def relogged(run: Path, change) -> None:
    """Writes metrics.jsonl anew: `change(line)` of each line, None to leave it out."""
    path = run / "metrics.jsonl"
    lines = [change(json.loads(text)) for text in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))
