"""A finished ablation as a folder to keep: README.md with the table, and its plots as files."""

from pathlib import Path

from jaxeff.core.errors import UserError
from jaxeff.core.files import write_text
from jaxeff.lab.columns import columns
from jaxeff.lab.finding import findings
from jaxeff.lab.plots import loss_curves, quality_against_cost, quality_on_others
from jaxeff.lab.results import Results

PAGE = """# {name}

{description}

    {command}

Commit {commit}, {processor} ({device}), jax {jax}, Python {python}; {minutes:.0f} minutes. Seeds {seeds}.

## Results

{table}

{score} with 95 % intervals over seeds; costs are of this machine. A rate with * is at an end of the sweep: a better one may lie
beyond.

{plots}

## What it shows

{findings}
"""

PLOTS = {"loss": loss_curves, "cost": quality_against_cost, "others": quality_on_others}


def record(workdir: str | Path, folder: str | Path) -> Path:
    """Writes FOLDER/README.md, and its plots, from the results in a workdir; what they mean is for its author to add.

    Raises UserError where there are no results or they cannot be read, some are missing, or the README is there already.
    """
    source, readme = Path(workdir) / "results.json", Path(folder) / "README.md"
    if not source.exists():
        raise UserError(f"{workdir} has no results.json: it holds no ablation that has finished a model")
    if readme.exists():
        raise UserError(f"{readme} is there already; move it away to write it anew")
    try:
        results = Results.from_json(source.read_text())
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source} cannot be read as results: {error}") from error
    if results.missing:
        raise UserError(f"{workdir} is not finished: {', '.join(results.missing)}")
    drawn = {name: svg for name, draw in PLOTS.items() if (svg := draw(results))}
    for name, svg in drawn.items():
        write_text(Path(folder) / f"{name}.svg", svg.replace("<svg ", '<svg style="background:#fff" ', 1) + "\n")
    write_text(readme, page(results, list(drawn)))
    return readme


def page(results: Results, plots: list[str]) -> str:
    """The README's text."""
    return PAGE.format(
        name=results.name.replace("-", " ").capitalize(),
        description=results.description,
        command=results.command,
        commit=results.versions.get("commit", "unknown")[:12],
        processor=results.machine.get("processor", "?"),
        device=results.machine.get("device", "?"),
        jax=results.versions.get("jax", "?"),
        python=results.versions.get("python", "?"),
        minutes=(results.seconds or 0.0) / 60,
        seeds=", ".join(map(str, results.protocol.get("seeds", ()))),
        score=results.score_words.capitalize(),
        table=table(results),
        plots="\n".join(f"![{PLOTS[name].__name__.replace('_', ' ')}]({name}.svg)" for name in plots),
        findings="\n".join(f"- {line}" for line in findings(results)),
    )


def table(results: Results) -> str:
    """The table of the report in Markdown."""
    shown = columns(results)
    heads = ["model", *(f"{c.title}, {c.unit}" if c.unit else c.title for c in shown)]
    lines = [[row.name, *(c.cell(row, results.baseline_row) for c in shown)] for row in results.rows]
    rule = ["---", *("---:" for _ in shown)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))
