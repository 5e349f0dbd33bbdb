"""report.html: one file with no outside resource, to be read on a screen, on paper or by a screen reader."""

import datetime
import html
from pathlib import Path

from jaxeff.core.files import write_text
from jaxeff.lab import take_along
from jaxeff.lab.columns import Column, columns, n_seeds, times_words, uncorrected
from jaxeff.lab.figures import plots as drawings
from jaxeff.lab.finding import findings
from jaxeff.lab.method import method
from jaxeff.lab.plots import Plot, inline, key
from jaxeff.lab.results import Results, Row
from jaxeff.lab.style import document


def write(results: Results, path: str | Path) -> Path:
    """Write the page to `path`, and beside it the figures, numbers and tables that it links to."""
    drawn = drawings(results)
    take_along.write(results, drawn, Path(path).parent)
    write_text(path, page(results, drawn))
    return Path(path)


def page(results: Results, drawn: list[Plot] | None = None) -> str:
    """The whole page as HTML text, with the dates of the last run and of today; `drawn` saves drawing up its plots again."""
    title = f"Ablation: {results.name}"
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    drawn = drawings(results) if drawn is None else drawn
    body = [
        f"<h1>{_(title)}</h1>",
        f'<p class="lead">{_(results.description)}</p>',
        f'<p class="date">{_finished(results)}Page written on <time datetime="{today}">{today}</time>.</p>',
        finding(results),
        _section("results", "Results", tables(results)),
        _section("plots", "Plots", plots(drawn)),
        _section("method", "Method", method(results)),
        _section("runs", "Every run", runs(results)),
        _section("reproduce", "Reproduce", reproduce(results)),
        _section("where", "Corpus, machine, versions", circumstances(results)),
        '<footer>Written by jaxeff. All numbers, curves too, stand in <a href="results.json">results.json</a> beside this page.'
        "</footer>",
    ]
    return document(title, body)


def _(text) -> str:
    return html.escape(str(text))


def _finished(results: Results) -> str:
    """The date of the last run."""
    if results.finished is None:
        return ""
    return f'Last run finished on <time datetime="{_(results.finished)}">{_(results.finished[:10])}</time>. '


def _section(name: str, title: str, body: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{_(title)}</h2>\n{body}</section>'


def finding(results: Results) -> str:
    """What the table says, in words."""
    lines = "".join(f"<p>{_(line)}</p>" for line in findings(results))
    return f'<div class="finding">{lines}</div>' if lines else ""


def tables(results: Results) -> str:
    """The columns of quality and those of cost as a table each, so that neither is cut off on paper."""
    shown = columns(results)
    equal = "Models of equal size" if results.protocol.get("tolerance") else "Models whose sizes were not matched,"
    score = f"{results.score_words} and differences with 95 % intervals over seeds{uncorrected(results)}"
    if n_seeds(results) < 2:
        score = f"{results.score_words} of one seed, so without intervals"
    quality = _table(
        results, [c for c in shown if c.quality], f"{equal} on the same data; {score}. The best mean is bold."
    )
    cost = _table(
        results,
        [c for c in shown if not c.quality],
        f"What training and decoding cost on this machine. {times_words(results)}",
    )
    legend = "".join(
        f"<li><strong>{_(c.title)}</strong>{_(', ' + c.unit if c.unit else '')}: {_(c.meaning)}.</li>" for c in shown
    )
    links = ", ".join(f'<a href="{name}">{name}</a> ({words})' for name, words in take_along.TABLES.items())
    return (
        f'{quality}\n{cost}\n<p class="along">To take along: {links}.</p>'
        f"<details><summary>What the columns mean</summary><ul>{legend}</ul></details>"
    )


def _table(results: Results, shown: list[Column], caption: str) -> str:
    heads = [
        f'<th scope="col" title="{_(c.meaning)}">{_(c.title)}{f"<small>{_(c.unit)}</small>" if c.unit else ""}</th>'
        for c in shown
    ]

    def cells(row: Row) -> str:
        best = row is results.best_row
        return "".join(_text(c.cell(row, results.baseline_row), best and c.title == results.score_words) for c in shown)

    return _frame(caption, heads, [_line(row, cells(row)) for row in results.rows])


def _text(text: str, best: bool = False) -> str:
    return f'<td class="best">{_(text)}</td>' if best else f"<td>{_(text)}</td>"


def _line(row: Row, cells: str) -> str:
    return f'<tr><th scope="row">{_(row.name)}</th>{cells}</tr>'


def _frame(caption: str, heads: list[str], lines: list[str]) -> str:
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_(caption)}"><table>'
        f'<caption><span>{_(caption)}</span></caption><thead><tr><th scope="col" class="first">model</th>{"".join(heads)}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def plots(drawn: list[Plot]) -> str:
    """The figures with their legends and captions."""
    return "\n".join(map(_figure, drawn)) or "<p>Nothing is finished yet.</p>"


def _figure(plot: Plot) -> str:
    panels = "".join(f'<div class="panel">{svg}</div>' for svg in inline(plot))
    models = [(i, name) for i, name in enumerate(plot.names) if name is not None]
    legend = "".join(f"<li>{key(plot, i)}{_(name)}</li>" for i, name in models)
    stem = f"{take_along.FIGURES}/{plot.name}"
    links = f'<a href="{stem}.svg">SVG</a>, <a href="{stem}.pdf">PDF</a>'
    return (
        f'<figure><div class="panels">{panels}</div><ul class="legend">{legend}</ul>'
        f'<figcaption>{_(plot.caption)} <span class="along">{links}</span></figcaption></figure>'
    )


def runs(results: Results) -> str:
    """Every seed's test result and every point of the sweep."""
    seeds = sorted({seed for row in results.rows for seed in row.test})
    lrs = sorted({lr for row in results.rows for lr in row.sweep})

    def lines(cells) -> list[str]:
        return [_line(row, cells(row)) for row in results.rows]

    tests = _frame(
        f"Test {results.score_words} for each seed.",
        [_head(f"seed {seed}") for seed in seeds],
        lines(lambda row: "".join(_cell(row.test.get(seed, "")) for seed in seeds)),
    )
    sweep = _frame(
        f"Learning-rate sweep: validation {results.score_words} after the short runs. The rate that was kept is bold.",
        [_head(f"lr {lr:g}") for lr in lrs],
        lines(lambda row: "".join(_cell(row.sweep.get(lr, ""), lr == row.best_lr) for lr in lrs)),
    )
    built = _frame(
        "What was built.",
        [_head("parameters"), '<th scope="col" class="code">what differs</th>'],
        lines(lambda row: f'<td>{row.n_parameters:,}</td><td class="code">{_(row.built)}</td>'),
    )
    return tests + sweep + built if lrs else tests + built


def _head(text: str) -> str:
    return f'<th scope="col">{_(text)}</th>'


def _cell(value: float | str | None, best: bool = False) -> str:
    return _text("diverged" if value is None else value if isinstance(value, str) else f"{value:.4f}", best)


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
    took |= {} if results.finished is None else {"last run finished": results.finished}
    parts = (
        {f"corpus {key}": value for key, value in results.corpus.items()} | results.machine | results.versions | took
    )
    return "<dl>" + "".join(f"<dt>{_(key)}</dt><dd>{_(_plain(value))}</dd>" for key, value in parts.items()) + "</dl>"


def _plain(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(v)}" for key, v in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
