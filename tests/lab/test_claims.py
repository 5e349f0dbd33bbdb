"""What a report claims of several models, of one, and of one seed."""

import csv
import dataclasses
import io
import json
import re

import pytest
from rich.console import Console

from jaxeff.lab import report, table, take_along
from jaxeff.lab.columns import columns, p_text
from jaxeff.lab.finding import findings
from jaxeff.lab.method import method
from jaxeff.lab.record import page as record
from tests.lab.made_up import made_up

# Of three seeds, against a baseline that is the same at all: p = 0.0091, below 0.05 among five models, above it among six.
GAPS = (0.10, 0.14, 0.12)


def compared(n: int, missing=()):
    """A baseline and n models that each lie above it by GAPS, in another order."""
    names = ("mha", *(f"m{i}" for i in range(n)))
    results = made_up(names=names, costs=False, missing=tuple(missing))
    tests = [dict.fromkeys(range(3), 2.0), *({s: 2 + GAPS[(s + i) % 3] for s in range(3)} for i in range(n))]
    rows = [dataclasses.replace(row, test=test, best_lr=3e-3) for row, test in zip(results.rows, tests, strict=True)]
    return dataclasses.replace(results, rows=tuple(rows))


def test_one_model_is_compared_as_before():
    results = compared(1)
    found = results.comparisons["m0"]
    assert found.interval.excludes_zero and found.differs and found.p == found.p_holm == pytest.approx(0.0091, abs=1e-4)
    assert "Worse than mha by more than seeds explain: m0 (+0.120 \u00b1 0.050, p 0.009)." in findings(results)
    assert not any("Holm" in line for line in findings(results)) and "not corrected" not in report.page(results, [])
    assert "where the interval leaves out zero" in " ".join(method(results).split())


def test_only_what_survives_the_correction_is_named():
    results = compared(6)
    assert all(c.interval.excludes_zero and not c.differs for c in results.comparisons.values())
    lines = findings(results)
    assert not any("than seeds explain" in line for line in lines)
    assert f"Not told apart from mha by these seeds: {', '.join(f'm{i} (p 0.055)' for i in range(6))}." in lines
    assert "Each p is corrected for 6 comparisons (Holm); intervals are not corrected." in lines
    strong = dataclasses.replace(results.rows[1], test={0: 2.1, 1: 2.1001, 2: 2.1002})
    mixed = dataclasses.replace(results, rows=(results.rows[0], strong, *results.rows[2:]))
    assert mixed.comparisons["m0"].differs and any(c.differs for name, c in mixed.comparisons.items() if name != "m0")
    assert any(line.startswith("Worse than mha by more than seeds explain: m0 (") for line in findings(mixed))


def test_a_model_that_is_not_finished_counts_as_compared():
    assert compared(5).comparisons["m0"].differs
    results = compared(5, missing=("later",))
    assert results.n_comparisons == 6 and not results.comparisons["m0"].differs
    alone = dataclasses.replace(compared(2), baseline="other", missing=("other",))
    assert alone.n_comparisons == 3 and alone.comparisons == {}


def test_p_values_stand_in_every_table():
    results = compared(6)
    entry = json.loads(results.to_json())["rows"][1]
    assert entry["difference_p_holm"] == pytest.approx(6 * entry["difference_p"])
    line = list(csv.DictReader(io.StringIO(take_along.numbers(results))))
    assert line[0]["difference_p"] == "" and float(line[1]["difference_p_holm"]) == entry["difference_p_holm"]
    titles = {(c.title, c.unit): c for c in columns(results)}
    assert "corrected for 6 comparisons" in titles["p", "Holm"].meaning
    assert [titles["p", "Holm"].cell(row, None) for row in results.rows] == ["\u2013", *["0.055"] * 6]
    assert "not corrected for 6 comparisons" in titles["difference to mha", "bits per byte"].meaning
    for text in (report.tables(results), take_along.latex(results), record(results, [])):
        assert "intervals" in text and "not corrected for 6 comparisons" in text
    out = io.StringIO()
    table.show(results, Console(file=out, width=80, force_terminal=True, color_system=None))
    assert "p is corrected for 6 comparisons (Holm); intervals are not" in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 80


def test_small_p_values_as_text():
    assert [p_text(p) for p in (0.0, 0.00099, 0.001, 0.0312, 1.0)] == ["<0.001", "<0.001", "0.001", "0.031", "1.000"]
    rows = [
        dataclasses.replace(r, test={s: 2 + i + 1e-6 * i * s for s in range(3)}) for i, r in enumerate(compared(2).rows)
    ]
    assert "& $<$0.001 &" in take_along.latex(dataclasses.replace(compared(2), rows=tuple(rows)))


def test_one_seed_claims_nothing_anywhere():
    results = made_up(seeds=(0,))
    assert results.comparisons == {} and all(column.title != "p" for column in columns(results))
    words = " ".join(re.sub(r"<[^>]+>", "", report.page(results, [])).split())
    assert "95 %" not in words and "Holm" not in words and "seeds explain" not in words
    assert "Intervals. There are none: each model was trained from one seed" in words and "from seed 0;" in words
    assert json.loads(results.to_json())["rows"][1]["difference_p_holm"] is None
    assert "from seeds 0, 1, 2;" in report.page(made_up(), [])


def test_a_model_that_is_better_is_claimed_where_higher_is_better():
    lines = findings(dataclasses.replace(compared(2), score_name="accuracy", higher_is_better=True))
    assert any(line.startswith("Better than mha by more than seeds explain: m0") for line in lines)


def test_the_page_has_the_date_of_the_runs_where_it_was_kept():
    results = made_up()
    assert 'finished on <time datetime="2025-03-01T10:20:30+00:00">2025-03-01</time>.' in report.page(results, [])
    assert "finished on 2025-03-01. Seeds" in record(results, [])
    without = report.page(dataclasses.replace(results, finished=None), [])
    assert "finished on" not in without and "Page written on" in without
