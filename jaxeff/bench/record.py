"""What a benchmark hands back: one JSON object, and the table that is printed from it."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxeff.train import circumstances


def record(
    name: str,
    *,
    ours: float,
    peer: float,
    unit: str,
    ratio: float,
    meaning: str,
    rows: Sequence[Mapping[str, Any]] = (),
    **more,
) -> dict:
    """The object every benchmark returns.

    `ours` and `peer` are in `unit`; `ratio` is the figure to look at and `meaning` says in words what it is and which
    way is better. `rows` holds one mapping a line of the table.
    """
    return {
        "name": name,
        "ours": ours,
        "peer": peer,
        "unit": unit,
        "ratio": ratio,
        "meaning": meaning,
        "rows": [dict(row) for row in rows],
        "machine": machine(),
        **more,
    }


def machine() -> dict:
    """This machine, how busy it is with other things (processes that want to run, a minute's mean), and the versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        **circumstances.machine(),
        "cores": cores,
        "load": load,
        "backend": jax.default_backend(),
        **circumstances.versions(),
    }


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
    console.print(
        f"ratio {_cell(entry['ratio'])}: {entry['meaning']} "
        f"(ours {_cell(entry['ours'])}, peer {_cell(entry['peer'])} {entry['unit']})"
    )
    load = "" if box["load"] is None else f", load {box['load']:.1f}"
    console.print(
        f"{box['processor']}, {box['cores']} cores{load}, {box['device']}, jax {box['jax']}, python {box['python']}"
    )


def _cell(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
