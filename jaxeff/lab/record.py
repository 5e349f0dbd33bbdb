"""A finished ablation as a folder to keep: README.md with the table, and its plots as files."""

from pathlib import Path

from jaxeff.core.errors import UserError
from jaxeff.core.files import write_text
from jaxeff.lab.columns import n_seeds, uncorrected
from jaxeff.lab.figures import plots
from jaxeff.lab.finding import findings
from jaxeff.lab.plots import Plot, files
from jaxeff.lab.results import Results
from jaxeff.lab.take_along import markdown

PAGE = """# {name}

{description}

    {command}

Commit {commit}, {processor} ({device}), jax {jax}, Python {python}; {minutes:.0f} minutes{finished}. Seeds {seeds}.

## Results

{table}

{score} {taken}; costs are of this machine. A rate with * is at an end of the sweep: a better one may lie
beyond.

{plots}

## What it shows

{findings}
"""

KEPT = ("loss", "cost", "others")  # decoding has its columns in the table


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
    drawn = [plot for plot in plots(results) if plot.name in KEPT]
    for plot in drawn:
        write_text(Path(folder) / f"{plot.name}.svg", files(plot)[f"{plot.name}.svg"].decode())
    write_text(readme, page(results, drawn))
    return readme


def page(results: Results, drawn: list[Plot]) -> str:
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
        finished=f", finished on {results.finished[:10]}" if results.finished else "",
        seeds=", ".join(map(str, results.protocol.get("seeds", ()))),
        score=results.score_words.capitalize(),
        taken=f"with 95 % intervals over seeds{uncorrected(results)}"
        if n_seeds(results) > 1
        else "of one seed, so without intervals",
        table=markdown(results).strip(),
        plots="\n\n".join(f"![{plot.title}]({plot.name}.svg)\n\n{plot.caption}" for plot in drawn),
        findings="\n".join(f"- {line}" for line in findings(results)),
    )
