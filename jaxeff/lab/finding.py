"""What the table of an ablation says, in sentences, without claiming more than the intervals do."""

from jaxeff.lab.columns import digits, interval_text, n_seeds
from jaxeff.lab.results import Results


def findings(results: Results) -> list[str]:
    """The best model; what differs from the baseline by more than seeds explain, and what does not; what is missing."""
    lines = []
    if results.rows:
        best, word = results.best_row, "Highest" if results.higher_is_better else "Lowest"
        lines.append(f"{word} test {results.score_words}: {best.name}, {interval_text(best.score, digits(results))}.")
    base = results.baseline_row
    gaps = [(row, row.difference(base)) for row in results.rows]
    gaps = [(row, gap) for row, gap in gaps if gap is not None and gap.low is not None]
    for sign, word in ((-1, "better"), (1, "worse")):
        found = [
            f"{row.name} ({interval_text(gap, digits(results), sign=True)})"
            for row, gap in gaps
            if gap.excludes_zero and results.score.badness(gap.mean) * sign > 0
        ]
        if found:
            lines.append(f"{word.capitalize()} than {results.baseline} by more than seeds explain: {', '.join(found)}.")
    if len(results.rows) > 1 and n_seeds(results) == 1:
        lines.append("One seed each: whether differences are more than chance is not known.")
    open_ = [row.name for row, gap in gaps if not gap.excludes_zero]
    if open_:
        lines.append(f"Not told apart from {results.baseline} by these seeds: {', '.join(open_)}.")
    if results.missing:
        lines.append(f"Not finished, hence not shown: {', '.join(results.missing)}.")
    return lines
