"""What the table of an ablation says, in sentences, without claiming more than the seeds and the sweeps allow."""

from collections.abc import Sequence

from jaxeff.lab.columns import digits, interval_text, n_seeds, p_text
from jaxeff.lab.results import Results, Row


def findings(results: Results) -> list[str]:
    """The best model, and whose learning rate was not found; what differs from the baseline by more than seeds explain, and what
    does not; what is missing."""
    lines = [_best(results)] if results.rows else []
    lines += _differences(results)
    if len(results.rows) > 1 and n_seeds(results) == 1:
        lines.append("One seed each: whether differences are more than chance is not known.")
    if results.missing:
        lines.append(f"Not finished, hence not shown: {', '.join(results.missing)}.")
    return lines


def _best(results: Results) -> str:
    best, word = results.best_row, "Highest" if results.higher_is_better else "Lowest"
    found = f"{word} test {results.score_words}: {best.name}, {interval_text(best.score, digits(results))}"
    edges = [_edge(row) for row in results.rows if row.lr_at_edge]
    if not edges:
        return f"{found}."
    if len(edges) == 1:
        return f"{found}; but the best learning rate of {edges[0]} lies at an end of its sweep, so a better one may lie beyond."
    return f"{found}; but the best learning rates of {_and(edges)} lie at an end of their sweeps, so better ones may lie beyond."


def _edge(row: Row) -> str:
    end = "highest" if row.best_lr == max(row.sweep) else "lowest"
    return f"{row.name} ({row.best_lr:g}, the {end} of {len(row.sweep)} tried)"


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _differences(results: Results) -> list[str]:
    """What is claimed and what is not; nothing with one seed."""
    lines, found = [], results.comparisons
    for sign, word in ((-1, "Better"), (1, "Worse")):
        named = [
            f"{name} ({interval_text(c.interval, digits(results), sign=True)}, p {p_text(c.p_holm)})"
            for name, c in found.items()
            if c.differs and results.score.badness(c.interval.mean) * sign > 0
        ]
        if named:
            lines.append(f"{word} than {results.baseline} by more than seeds explain: {', '.join(named)}.")
    open_ = [f"{name} (p {p_text(c.p_holm)})" for name, c in found.items() if not c.differs]
    if open_:
        lines.append(f"Not told apart from {results.baseline} by these seeds: {', '.join(open_)}.")
    if found and results.n_comparisons > 1:
        lines.append(
            f"Each p is corrected for {results.n_comparisons} comparisons (Holm); intervals are not corrected."
        )
    return lines
