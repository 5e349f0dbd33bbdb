"""An estimate as one page: HTML without an outside resource, in the style of the reports."""

import html
from collections.abc import Sequence

from jaxeff.lab.plots import COLOURS, svg, themed
from jaxeff.lab.style import document
from jaxeff.plan.estimate import Estimate
from jaxeff.plan.parts import COPIES, PARTS, WAITING
from jaxeff.plan.table import COMPARED, SENT, WORKS, compared_rows, gib, headline, ms, place, sent_rows, work_rows

CSS = """
.bar { display: flex; height: 2.2rem; width: 100%; margin: .6rem 0; border-radius: 4px; overflow: hidden; }
.bar span { min-width: 1px; } .key { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .4rem; }
td.words, th.words { text-align: left; }
"""
ROWS = 40
VISIBLE = 0.0005  # of a bar


def page(title: str, estimates: Sequence[tuple[str, Estimate | str]], run: Sequence[str] = ()) -> str:
    """The page of one or several estimates, side by side where there are several. run: lines about the whole run, one each."""
    body = [f"<h1>{_(title)}</h1>"]
    if len(estimates) > 1:
        body.append(_table(COMPARED, compared_rows(estimates)))
    for i, ((name, found), about) in enumerate(zip(estimates, [*run, *[""] * len(estimates)], strict=False)):
        if isinstance(found, Estimate):
            body += _one(i, name if len(estimates) > 1 else "", found, about)
    return document(title, body, CSS)


def _one(i: int, name: str, found: Estimate, about: str) -> list[str]:
    lines = [*headline(found).split("\n"), about]
    body = [f"<h2>{_(name)}</h2>"] if name else []
    body.append('<div class="finding">' + "".join(f"<p>{_(line)}</p>" for line in lines if line) + "</div>")
    if not found.fits:
        return body
    body += ["<h2>Memory of a chip</h2>", _bar({k: v / found.hbm for k, v in found.memory.items()}, list(found.memory))]
    body.append(
        _table(("", "bytes", "share"), [(k, gib(v), f"{v / found.hbm:.1%}") for k, v in found.memory.items() if v])
    )
    arrays = [(r["array"], gib(r["bytes"]), r["part"], place(r["line"])) for r in found.arrays]
    body += ["<h2>Largest arrays</h2>", _table(("array", "bytes", "part", "line"), arrays)]
    shares = {part: seconds / found.seconds for part, seconds in found.parts.items()}
    body += ["<h2>Time by part of the model</h2>", _bar(shares, list(PARTS))]
    body.append(
        _table(("part", "time", "share"), [(p, ms(s), f"{s / found.seconds:.1%}") for p, s in found.parts.items()])
    )
    sent = sent_rows(found, ROWS)
    body += ["<h2>Communication between chips</h2>", _table(SENT, sent) if sent else "<p>None.</p>"]
    body += ["<h2>Instructions</h2>", _roofline(i, found), _table(WORKS, work_rows(found, ROWS))]
    if found.unknown:
        listed = ", ".join(f"{n} at {_(place(line))}" for line, n in found.unknown.items())
        body.append(f"<p>Kernels of which the compiler has no estimate, and whose time is missing above: {listed}.</p>")
    body.append(f"<footer>{_(METHOD)}</footer>")
    return body


METHOD = (
    "Times are the compiler's own estimates of cycles at the chip's clock, summed over loops; kernels count at an assumed share of"
    " the peak; waiting is what a plain model of the links leaves uncovered. Nothing was run."
)


def _roofline(i: int, found: Estimate) -> str:
    """FLOP/s against FLOPs a byte of every instruction with a product."""
    works = [w for w in found.works if w["flops"] and w["bytes"] and w["seconds"]]
    if not works:
        return ""

    def draw(figure):
        axes = figure.subplots()
        intensity = [w["flops"] / w["bytes"] for w in works]
        ends = min(intensity) / 2, max([*intensity, found.peak / found.bandwidth]) * 2
        places = [ends[0], found.peak / found.bandwidth, ends[1]]
        axes.plot(
            places, [min(found.peak, found.bandwidth * at) / 1e12 for at in places], color=COLOURS[4], linewidth=1.2
        )
        for i, part in enumerate(dict.fromkeys(w["part"] for w in works)):
            mine = [w for w in works if w["part"] == part]
            axes.scatter(
                [w["flops"] / w["bytes"] for w in mine], [w["flops"] / w["seconds"] / 1e12 for w in mine],
                s=[12 + 400 * w["seconds"] / found.seconds for w in mine], color=COLOURS[i % len(COLOURS)], label=part, alpha=0.8,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte of main memory", ylabel="TFLOP/s of a chip")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")

    words = "Each matrix product as a point, larger where it takes longer; the line is what the chip can do."
    drawn = themed(svg(f"roofline-{i}", "Roofline", words, (8.0, 3.6), draw))
    return f"<figure>{drawn}<figcaption>{words}</figcaption></figure>"


def _bar(shares: dict[str, float], order: Sequence[str]) -> str:
    """Shares of one whole, those that can be seen, as pieces of a bar in a fixed order, so that two pages can be compared."""
    names = [name for name in order if shares.get(name, 0) >= VISIBLE]
    fill = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)} | {
        WAITING: "var(--ink)",
        COPIES: "var(--soft)",
    }
    said = {name: f"{_(name)} {shares[name]:.1%}" for name in names}
    pieces = "".join(
        f'<span style="width:{100 * shares[name]:.2f}%;background:{fill[name]}" title="{said[name]}"></span>'
        for name in names
    )
    keys = "".join(f'<li><span class="key" style="background:{fill[name]}"></span>{said[name]}</li>' for name in names)
    label = ", ".join(said.values())
    return themed(f'<div class="bar" role="img" aria-label="{label}">{pieces}</div><ul class="legend">{keys}</ul>')


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    numeric = [i > 0 and all(row[i][:1].isdigit() or not row[i] for row in rows) for i in range(len(titles))]
    kind = lambda i: "" if numeric[i] else ' class="words"'  # noqa: E731
    head = "".join(f"<th{kind(i)}>{_(title)}</th>" for i, title in enumerate(titles))
    body = "".join(
        "<tr>" + "".join(f"<td{kind(i)}>{_(cell)}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _(value) -> str:
    return html.escape(str(value))
