"""report.html: one file with no outside resource, to be read on a screen, on paper or by a screen reader."""

import html
from pathlib import Path

from jaxeff.core.files import write_text
from jaxeff.lab.columns import columns
from jaxeff.lab.finding import findings
from jaxeff.lab.method import method
from jaxeff.lab.plots import decode_against_context, loss_curves, quality_against_cost, quality_on_others
from jaxeff.lab.results import Results

CSS = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --wash: #f6f8fa; --link: #0550ae; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .7rem; padding-top: .9rem; border-top: 1px solid var(--line); }
p, ul, ol, dl { max-width: 48rem; }
a { color: var(--link); }
.lead { color: var(--soft); margin-top: 0; font-size: 1.06rem; }
.finding { background: var(--wash); border-left: 4px solid #0072B2; padding: .8rem 1.1rem; margin: 1.4rem 0; max-width: 54rem; }
.finding p { margin: .3rem 0; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 3px solid #0072B2; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; margin: .4rem 0 1.2rem; }
caption { text-align: left; min-width: 28rem; color: var(--soft); padding: 0 0 .6rem; }
th, td { padding: .45rem .65rem; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; vertical-align: bottom; }
thead th { font-weight: 600; border-bottom: 2px solid var(--soft); white-space: normal; line-height: 1.3; min-width: 4.2rem; }
thead th small { display: block; font-weight: 400; color: var(--soft); }
th[scope=row], th.first { text-align: left; position: sticky; left: 0; background: #fff; }
tbody tr:hover > * { background: var(--wash); }
td.best { font-weight: 700; }
td.code { text-align: left; white-space: normal; font: .88em/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
figure { margin: 1.4rem 0 2rem; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .92rem; max-width: 60rem; margin-top: .4rem; }
pre, code { font: .88em/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
footer { margin-top: 3rem; color: var(--soft); font-size: .9rem; }
@media (max-width: 40rem) { main { padding: 1.2rem .8rem; } dl { display: block; } dd { margin-bottom: .5rem; } }
@media print { main { max-width: none; padding: 0; } table { font-size: .62rem; } figure, table { break-inside: avoid; } }
"""


LOSS = """
Left: training loss against step; lines are means over seeds, bands reach from the lowest to the highest seed, both smoothed.
Right: the same less the loss of the baseline at the same step and seed. Both saw the same batch, so its difficulty cancels."""

COST = """
The test score against three costs. Bars are intervals over seeds. Left is cheaper for FLOPs and state, right is faster for
speed."""

OTHERS = """
The test score on other data against that on the models' own: what a model still knows, or has forgotten."""

DECODE = """
Decoding one sequence: time per token, time to the first token, and bytes kept between tokens, against the tokens before."""


def write(results: Results, path: str | Path) -> Path:
    """Write the page to `path`."""
    write_text(path, page(results))
    return Path(path)


def page(results: Results) -> str:
    """The whole page as HTML text."""
    title = f"Ablation: {results.name}"
    body = [
        f"<h1>{_(title)}</h1>",
        f'<p class="lead">{_(results.description)}</p>',
        finding(results),
        _section("results", "Results", table(results)),
        _section("plots", "Plots", plots(results)),
        _section("method", "Method", method(results)),
        _section("runs", "Every run", runs(results)),
        _section("reproduce", "Reproduce", reproduce(results)),
        _section("where", "Corpus, machine, versions", circumstances(results)),
        "<footer>Written by jaxeff. The same numbers stand in <code>results.json</code> beside this page.</footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _(text) -> str:
    return html.escape(str(text))


def _section(name: str, title: str, body: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{_(title)}</h2>\n{body}</section>'


def finding(results: Results) -> str:
    """What the table says, in words."""
    lines = "".join(f"<p>{_(line)}</p>" for line in findings(results))
    return f'<div class="finding">{lines}</div>' if lines else ""


def table(results: Results) -> str:
    """The main table."""
    shown = columns(results)
    best = results.best_row
    head = "".join(f'<th scope="col" title="{_(c.meaning)}">{_(c.title)}<small>{_(c.unit)}</small></th>' for c in shown)
    lines = []
    for row in results.rows:
        cells = []
        for column in shown:
            mark = ' class="best"' if column.title == results.score_words and row == best else ""
            cells.append(f"<td{mark}>{_(column.cell(row, results.baseline_row))}</td>")
        lines.append(f'<tr><th scope="row">{_(row.name)}</th>{"".join(cells)}</tr>')
    legend = "".join(
        f"<li><strong>{_(c.title)}</strong>{_(', ' + c.unit if c.unit else '')}: {_(c.meaning)}.</li>" for c in shown
    )
    equal = "Models of equal size" if results.protocol.get("tolerance") else "Models whose sizes were not matched,"
    caption = (
        f"{equal} on the same data; {results.score_words} and differences with 95 % intervals over seeds. "
        "The best mean is bold."
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table of results"><table><caption>{caption}</caption>'
        f'<thead><tr><th scope="col" class="first">model</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>\n'
        f"<details><summary>What the columns mean</summary><ul>{legend}</ul></details>"
    )


def plots(results: Results) -> str:
    """The figures with their captions."""
    if not results.rows:
        return "<p>Nothing is finished yet.</p>"
    drawn = {
        draw(results): text
        for draw, text in (
            (loss_curves, LOSS),
            (quality_against_cost, COST),
            (quality_on_others, OTHERS),
            (decode_against_context, DECODE),
        )
    }
    return "\n".join(
        f"<figure>{svg}<figcaption>{_(text.strip())}</figcaption></figure>" for svg, text in drawn.items() if svg
    )


def runs(results: Results) -> str:
    """Every seed's test result and every point of the sweep."""
    seeds = sorted({seed for row in results.rows for seed in row.test})
    lrs = sorted({lr for row in results.rows for lr in row.sweep})

    def lines(cells) -> str:
        return "".join(f'<tr><th scope="row">{_(row.name)}</th>{cells(row)}</tr>' for row in results.rows)

    tests = _small(
        f"Test {results.score_words} for each seed.",
        [f"seed {seed}" for seed in seeds],
        lines(lambda row: "".join(_cell(row.test.get(seed, "")) for seed in seeds)),
    )
    sweep = _small(
        f"Learning-rate sweep: validation {results.score_words} after the short runs. The rate that was kept is bold.",
        [f"lr {lr:g}" for lr in lrs],
        lines(lambda row: "".join(_cell(row.sweep.get(lr, ""), lr == row.best_lr) for lr in lrs)),
    )
    sizes = _small(
        "What was built.",
        ["width matched by", "parameters", "what differs"],
        lines(
            lambda row: f'<td>{row.varied or ""}</td><td>{row.n_parameters:,}</td><td class="code">{_(row.built)}</td>'
        ),
    )
    if not lrs:
        return tests + sizes
    return tests + sweep + sizes


def _cell(value: float | str | None, best: bool = False) -> str:
    text = "diverged" if value is None else value if isinstance(value, str) else f"{value:.4f}"
    return f'<td class="best">{text}</td>' if best else f"<td>{text}</td>"


def _small(caption: str, heads: list[str], lines: str) -> str:
    head = "".join(f'<th scope="col">{_(h)}</th>' for h in heads)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_(caption)}"><table><caption>{_(caption)}</caption>'
        f'<thead><tr><th scope="col" class="first">model</th>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def reproduce(results: Results) -> str:
    """The commands."""
    rows = "\n".join(_(row.reproduce) for row in results.rows if row.reproduce)
    return (
        f"<p>The whole page (interrupted, it goes on with what is missing):</p><pre>{_(results.command)}</pre>"
        "<p>One row each, in a folder of its own. Quality is bit-equal on the same machine, versions and corpus; times vary.</p>"
        f"<pre>{rows}</pre>"
    )


def circumstances(results: Results) -> str:
    """Corpus, machine and versions as a list of terms."""
    took = {} if results.seconds is None else {"time of all runs": f"{results.seconds / 60:.1f} min"}
    parts = (
        {f"corpus {key}": value for key, value in results.corpus.items()} | results.machine | results.versions | took
    )
    return "<dl>" + "".join(f"<dt>{_(key)}</dt><dd>{_(_plain(value))}</dd>" for key, value in parts.items()) + "</dl>"


def _plain(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(v)}" for key, v in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
