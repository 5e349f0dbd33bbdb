"""run.json and metrics.jsonl as they are read: through one schema, and without JAX."""

import json
from collections.abc import Callable
from typing import Any

from jaxeff.core.errors import UserError
from jaxeff.core.fields import mismatch
from jaxeff.train.storage import local

# What they must hold, and of what type.
RUN = {"config": dict, "corpus": str, "data": dict, "starts": list}
START = {"step": int}
LINE = {"step": int, "loss": float | None, "tokens": int}
# What a line may hold of the time since the one before: seconds by what the loop did, which add up to what has passed.
SPENT = ("compute", "data_wait", "checkpoint", "compile", "evaluation", "profile")


def read_run(workdir) -> dict[str, Any] | None:
    """The content of run.json, or None where nothing was trained yet. Raises UserError when it cannot be read."""
    path = local(workdir) / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except RecursionError:
        raise UserError(f"{path} cannot be read: it is nested too deeply") from None
    wrong = "expected an object" if not isinstance(run, dict) else _wrong(run, RUN)
    for i, start in enumerate(run["starts"] if wrong is None else ()):
        wrong = wrong or (f"starts.{i}: expected an object" if not isinstance(start, dict) else None)
        wrong = wrong or _wrong(start, START, f"starts.{i}.")
    if wrong is not None:
        raise UserError(f"{path} is not what a run writes: {wrong}")
    return run


def read_metrics(workdir, warn: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that can be read, oldest first. warn: told of the others but a last one that a kill cut short."""
    path = local(workdir) / "metrics.jsonl"
    found, bad = [], []
    *whole, rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, text in enumerate([*whole, rest], 1):
        line = line_of(text)
        if line is not None:
            found.append(line)
        elif text.strip() and number <= len(whole):
            bad.append(number)
    if bad:
        numbers = ", ".join(map(str, bad[:5])) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        warn(f"{path}: no metrics can be read from line {numbers}: dropped, the others are kept")
    return found


def line_of(text: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl, None where it is not what a run writes."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and _wrong(line, LINE) is None and line["step"] >= 0 else None


def _wrong(found: dict[str, Any], schema: dict[str, Any], prefix: str = "") -> str | None:
    """Which field is missing or of another type, None when none is."""
    for name, kind in schema.items():
        if name not in found:
            return f"{prefix}{name} is missing"
        if (wanted := mismatch(found[name], kind)) is not None:
            return f"{prefix}{name}: expected {wanted}, found {str(found[name])[:60]!r}"
    return None
