"""The table of an ablation on the terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxeff.lab.columns import Column, columns
from jaxeff.lab.results import Results

ONE_TABLE = 150


def tables(results: Results, width: int) -> list[Table]:
    """One table where the terminal is wide enough, else one for quality and one for cost, or as many of each as fit beneath."""
    found = columns(results)
    if width >= ONE_TABLE:
        return [_table(results, found, results.name)]
    quality = [column for column in found if column.quality]
    cost = [column for column in found if not column.quality]
    return [
        *_fitting(results, quality, f"{results.name}: quality", width),
        *_fitting(results, cost, f"{results.name}: cost", width),
    ]


def _fitting(results: Results, shown: list[Column], title: str, width: int) -> list[Table]:
    """The columns in as few tables as the width allows, each with one column at least."""
    n = len(shown)
    while n > 1 and _width(_table(results, shown[:n], title)) > width:
        n -= 1
    made = [_table(results, shown[:n], title)]
    return made + (_fitting(results, shown[n:], title, width) if shown[n:] else [])


def _width(table: Table) -> int:
    return Console(width=10_000).measure(table).maximum


def _table(results: Results, shown: list[Column], title: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("model", no_wrap=True)
    for column in shown:
        head = _split(column.title) + (f"\n[dim]{column.unit}[/dim]" if column.unit else "")
        table.add_column(head, justify="right", no_wrap=True)
    for row in results.rows:
        table.add_row(row.name, *(column.cell(row, results.baseline_row) for column in shown))
    return table


def _split(title: str) -> str:
    """A heading of several words on two lines, the second one beginning with "at", "to" or "per" where there is one."""
    for word in (" at ", " to ", " per ", " "):
        if word in title:
            return title.replace(word, f"\n{word.lstrip()}", 1)
    return title


def show(results: Results, console: Console | None = None) -> None:
    """Print the table, and which models are still missing. Piped output is as wide as it needs to be."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, ONE_TABLE)
    for table in tables(results, console.width):
        console.print(table)
    if any(row.lr_at_edge for row in results.rows):
        console.print(
            "* the best learning rate is at an end of the sweep: a better one may lie beyond",
            style="dim",
            highlight=False,
        )
    if results.comparisons and results.n_comparisons > 1:
        console.print(
            f"p is corrected for {results.n_comparisons} comparisons (Holm); intervals are not",
            style="dim",
            highlight=False,
        )
    if results.missing:
        console.print(f"not finished: {', '.join(results.missing)}", highlight=False)
