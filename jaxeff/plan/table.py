"""An estimate as text for a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jaxeff
from jaxeff.plan.estimate import Estimate

ROWS = 10  # of each table
PACKAGE = str(Path(jaxeff.__file__).parent.parent)


def text(found: Estimate, steps: int | None = None, price: float | None = None, watts: float | None = None) -> str:
    """What a person asks first, line by line, and the tables. price: of a chip for an hour, in any currency. watts: of a chip, its
    share of the host included; steps: of the run."""
    parts = [headline(found), _memory(found)]
    if found.fits:
        parts += [_time(found), _sent(found), _works(found)]
        if steps is not None and found.kind == "train":
            parts.append(whole_run(found, steps, price, watts))
        if found.unknown:
            listed = ", ".join(f"{n} x {place(line)}" for line, n in found.unknown.items())
            parts.append(f"without an estimate, and not in these times: kernels at {listed}")
    return "\n\n".join(part for part in parts if part)


def headline(found: Estimate) -> str:
    """Whether it fits, and how fast it is, in a line or two."""
    what = {"train": "a training step", "prefill": "reading a prompt", "decode": "a decoded token"}[found.kind]
    mesh = " x ".join(f"{name} {size}" for name, size in found.mesh.items() if size > 1) or "one chip"
    first = f"{found.topology}, {found.chips} chips ({mesh}): {what} of {found.parameters:,} parameters"
    if not found.fits:
        return f"{first}\n  does NOT fit: needs {gib(found.used)} of {gib(found.hbm)} a chip"
    return (
        f"{first}\n  fits: {gib(found.used)} of {gib(found.hbm)} a chip\n  {ms(found.seconds)} each, {found.tokens_per_s:,.0f}"
        f" tokens/s ({found.tokens_per_s / found.chips:,.0f} a chip), MFU {found.mfu:.1%}; compiled in {found.compiled_in:.0f} s"
    )


def whole_run(found: Estimate, steps: int, price: float | None, watts: float | None) -> str:
    """How long all steps take, and what they cost."""
    hours = steps * found.seconds / 3600
    said = f"{steps:,} steps: {hours:.3g} h, {hours * found.chips:.3g} chip hours"
    said += "" if price is None else f", {hours * found.chips * price:.4g} at {price:g} a chip and hour"
    return said + ("" if watts is None else f", {hours * found.chips * watts / 1000:.4g} kWh at {watts:g} W a chip")


def _memory(found: Estimate) -> str:
    if not found.fits:
        return ""
    rows = [(name, gib(size), f"{size / found.hbm:.1%}") for name, size in found.memory.items() if size]
    arrays = [(row["array"], gib(row["bytes"]), row["part"], place(row["line"])) for row in found.arrays[:ROWS]]
    return (
        table("memory of a chip", ("", "", "of it"), rows)
        + "\n\n"
        + table("largest arrays", ("", "", "part", "line"), arrays)
    )


def _time(found: Estimate) -> str:
    rows = [
        (part, ms(s), f"{s / found.seconds:.1%}", bar(s / found.seconds)) for part, s in found.parts.items() if s > 0
    ]
    return table("time by part", ("", "", "share", ""), rows)


def _sent(found: Estimate) -> str:
    unasked = [row for row in found.sent if not row["asked"]]
    said = (
        f"\n{len(unasked)} that no sharding rule asks for, {ms(sum(r['seconds'] for r in unasked))}" if unasked else ""
    )
    return table("communication", SENT, sent_rows(found, ROWS)) + said


def _works(found: Estimate) -> str:
    return table("instructions", WORKS, work_rows(found, ROWS))


def comparison(found: Sequence[tuple[str, Estimate | str]]) -> str:
    """One line for each of several estimates."""
    return table("", COMPARED, compared_rows(found))


SENT = ("kind", "over", "size", "times", "takes", "waits", "part", "line", "")
WORKS = ("part", "line", "operation", "times", "takes", "at best", "bound by", "reached")
COMPARED = ("", "takes", "a chip holds", "tokens/s", "MFU", "compiled in")


def sent_rows(found: Estimate, n: int) -> list[tuple[str, ...]]:
    """The first n communications, under SENT."""
    return [
        (
            row["kind"], row["axes"], gib(row["bytes"]), f"{row['times']:g}", ms(row["seconds"]), ms(row["exposed"]),
            row["part"], place(row["line"]), "" if row["asked"] else "UNASKED",
        )
        for row in found.sent[:n]
    ]  # fmt: skip


def work_rows(found: Estimate, n: int) -> list[tuple[str, ...]]:
    """The first n instructions, under WORKS."""

    def row(w: Mapping[str, Any]) -> tuple[str, ...]:
        by_flops, by_memory = w["flops"] / found.peak, w["bytes"] / found.bandwidth
        best = max(by_flops, by_memory)
        return (
            w["part"], place(w["line"]), w["operation"], f"{w['times']:g}", ms(w["seconds"]), ms(best),
            "flops" if by_flops >= by_memory else "memory", f"{best / w['seconds']:.0%}" if w["seconds"] else "",
        )  # fmt: skip

    return [row(w) for w in found.works[:n]]


def compared_rows(found: Sequence[tuple[str, Estimate | str]]) -> list[tuple[str, ...]]:
    """A row for each of several estimates, under COMPARED."""
    rows = []
    for name, e in found:
        if isinstance(e, str):
            rows.append((name, e, "", "", "", ""))
        elif not e.fits:
            rows.append((name, "does not fit", gib(e.used), "", "", ""))
        else:
            speed = f"{e.tokens_per_s:,.0f}"
            rows.append((name, ms(e.seconds), gib(e.used), speed, f"{e.mfu:.1%}", f"{e.compiled_in:.0f} s"))
    return rows


def table(title: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their titles, the first at the left, numbers at the right."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in (titles, *rows)) for i in range(len(titles))]
    right = [i > 0 and all(row[i][:1].isdigit() or not row[i] for row in rows) for i in range(len(titles))]

    def line(row: Sequence[str]) -> str:
        cells = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
        return ("  " + "  ".join(cells)).rstrip()

    return "\n".join(([title] if title else []) + [line(titles), *map(line, rows)])


def place(line: str) -> str:
    """A line of Python, shortened where it is of this package."""
    return line.removeprefix(f"{PACKAGE}/").rpartition("site-packages/")[2]


def gib(n: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n:.0f} B"


def ms(seconds: float) -> str:
    """A time in milliseconds."""
    return f"{1e3 * seconds:,.2f} ms" if seconds < 10 else f"{seconds:,.1f} s"


def bar(share: float) -> str:
    """A share as a bar of up to 40 characters."""
    return "#" * round(40 * share)
