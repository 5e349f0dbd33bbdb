"""The files beside a report, for a paper or for other programs: figures, numbers and tables."""

import csv
import io
import os
from pathlib import Path

from jaxeff.core.files import refusals, write_text
from jaxeff.lab.columns import MINUS, NONE, Column, columns, n_seeds, uncorrected
from jaxeff.lab.plots import Plot, files
from jaxeff.lab.results import Results, Row

FIGURES = "figures"
TABLES = {"results.csv": "numbers", "table.tex": "LaTeX", "table.md": "Markdown"}


def write(results: Results, drawn: list[Plot], folder: str | Path) -> None:
    """Writes results.csv, table.tex and table.md, and each figure as SVG and PDF in figures/.

    Raises UserError where the file system refuses.
    """
    folder = Path(folder)
    for name, text in zip(TABLES, (numbers(results), latex(results), markdown(results)), strict=True):
        write_text(folder / name, text)
    for plot in drawn:
        for name, body in files(plot).items():
            _write_bytes(folder / FIGURES / name, body)


def _write_bytes(path: Path, body: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(body)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def numbers(results: Results) -> str:
    """A line of CSV a model with every number of results.json but the curves, unrounded; an empty cell where there is none."""
    lines = [_numbers(row, results) for row in results.rows]
    heads = list(dict.fromkeys(head for line in lines for head in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, heads or ["model"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _numbers(row: Row, results: Results) -> dict[str, object]:
    score, difference = row.score, row.difference(results.baseline_row)
    compared = results.comparisons.get(row.name)
    found = {
        "model": row.name,
        "parameters": row.n_parameters,
        "varied": row.varied,
        "best_lr": row.best_lr,
        f"test_{results.score_name}": score.mean,
        "test_low_95": score.low,
        "test_high_95": score.high,
        "difference": difference and difference.mean,
        "difference_low_95": difference and difference.low,
        "difference_high_95": difference and difference.high,
        "difference_p": compared and compared.p,
        "difference_p_holm": compared and compared.p_holm,
        "flops_per_token": row.flops_per_token,
        "tokens_per_s": row.tokens_per_s,
        "tokens_per_s_lowest": row.tokens_per_s_ends and row.tokens_per_s_ends[0],
        "tokens_per_s_highest": row.tokens_per_s_ends and row.tokens_per_s_ends[1],
        "memory_bytes": row.memory_bytes,
    }
    for d in row.decode:
        found[f"first_token_s_at_{d.context}"] = d.first_token_s
        found[f"token_s_at_{d.context}"] = d.token_s
        found[f"state_bytes_at_{d.context}"] = d.state_bytes
        for name, ends in (("first_token_s", d.first_token_ends), ("token_s", d.token_ends)):
            if ends:
                found |= {f"{name}_at_{d.context}_lowest": ends[0], f"{name}_at_{d.context}_highest": ends[1]}
    found |= {f"test_seed_{seed}": value for seed, value in row.test.items()}
    for name, values in row.others.items():
        found |= {f"{name}_seed_{seed}": value for seed, value in values.items()}
    return found | {f"validation_at_lr_{lr}": value for lr, value in row.sweep.items()}


def markdown(results: Results) -> str:
    """The table of the report in Markdown."""
    shown = columns(results)
    heads = ["model", *(f"{c.title}, {c.unit}" if c.unit else c.title for c in shown)]
    lines = [[row.name, *(c.cell(row, results.baseline_row) for c in shown)] for row in results.rows]
    rule = ["---", *("---:" for _ in shown)]
    escaped = ([text.replace("|", r"\|") for text in line] for line in (heads, rule, *lines))
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"


def latex(results: Results) -> str:
    """The table of the report in LaTeX, quality and cost apart, so that each fits a page."""
    shown = columns(results)
    quality = [column for column in shown if column.quality]
    cost = [column for column in shown if not column.quality]
    n = n_seeds(results)
    taken = (
        f"Means over {n} seeds with 95\\,\\% intervals{uncorrected(results)}; the best is bold."
        if n > 1
        else "One seed; the best is bold."
    )
    return (
        "% needs \\usepackage{booktabs}\n"
        + _tabular(results, quality, f"{_tex(results.name)}: quality. {taken}", "quality")
        + _tabular(results, cost, f"{_tex(results.name)}: cost.", "cost")
    )


def _tabular(results: Results, shown: list[Column], caption: str, label: str) -> str:
    heads = [["model", *(column.title for column in shown)], ["", *(column.unit for column in shown)]]
    lines = [[row.name, *(_cell(results, row, column) for column in shown)] for row in results.rows]
    body = "".join("    " + " & ".join(map(_tex, line)) + " \\\\\n" for line in heads)
    body += "    \\midrule\n"
    body += "".join("    " + " & ".join([_tex(name), *cells]) + " \\\\\n" for name, *cells in lines)
    return (
        "\\begin{table}\n  \\centering\\small\\setlength{\\tabcolsep}{4pt}\n"
        f"  \\caption{{{caption}}}\n  \\label{{tab:{results.name}-{label}}}\n"
        f"  \\begin{{tabular}}{{l{'r' * len(shown)}}}\n    \\toprule\n{body}    \\bottomrule\n  \\end{{tabular}}\n\\end{{table}}\n"
    )


def _cell(results: Results, row: Row, column: Column) -> str:
    text = _tex(column.cell(row, results.baseline_row))
    best = column.title == results.score_words and row is results.best_row
    return rf"\textbf{{{text}}}" if best else text


SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u00b1": r"$\pm$",
    MINUS: "$-$",
    "<": "$<$",
    NONE: "--",
}


def _tex(text: str) -> str:
    """Text with what LaTeX would take for commands made plain."""
    return "".join(SPECIAL.get(c, c) for c in text)
