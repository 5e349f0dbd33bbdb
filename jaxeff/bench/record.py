"""What a benchmark hands back: one JSON object, and the table that is printed from it."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxeff.core.errors import UserError


def record(name: str, *, ours: float, peer: float, unit: str, ratio: float, meaning: str,
           rows: Sequence[Mapping[str, Any]] = (), **more) -> dict:
    """The object every benchmark returns.

    `ours` and `peer` are in `unit`; `ratio` is the figure to look at and `meaning` says in words what it is and which
    way is better. `rows` holds one mapping a line of the table.
    """
    return {"name": name, "ours": ours, "peer": peer, "unit": unit, "ratio": ratio, "meaning": meaning,
            "rows": [dict(row) for row in rows], "machine": machine(), **more}


def machine() -> dict:
    """This machine and the versions that matter for a timing."""
    device = jax.devices()[0]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": _processor(), "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
        else os.cpu_count(), "load": load, "system": f"{platform.system()} {platform.machine()}",
        "backend": jax.default_backend(), "device": device.device_kind, "devices": jax.device_count(),
        "python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__,
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write(entry: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Writes `entry` as one JSON object, by way of a temporary file, so that a reader never sees half of it."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(entry, indent=1) + "\n")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def show(entry: Mapping[str, Any], file=None) -> None:
    """Prints the rows as a table, then the one line that says what the ratio is."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=file or sys.stdout, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 240  # a log keeps whole tables
    if entry["rows"]:
        table = Table(title=f"jaxeff bench {entry['name']}", title_justify="left")
        columns = list(dict.fromkeys(key for row in entry["rows"] for key in row))
        for column in columns:
            numeric = all(isinstance(row.get(column, 0), int | float) for row in entry["rows"])
            table.add_column(column.replace("_", " "), justify="right" if numeric else "left")
        for row in entry["rows"]:
            table.add_row(*(_cell(row.get(column, "")) for column in columns))
        console.print(table)
    box = entry["machine"]
    console.print(f"ratio {_cell(entry['ratio'])}: {entry['meaning']} "
                  f"(ours {_cell(entry['ours'])}, peer {_cell(entry['peer'])} {entry['unit']})")
    console.print(f"{box['processor']}, {box['cores']} cores, {box['backend']} {box['device']}, jax {box['jax']}, "
                  f"python {box['python']}")


def _cell(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
