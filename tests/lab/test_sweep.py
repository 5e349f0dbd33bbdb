"""Sweeps that widen until the best learning rate lies inside, with training replaced by a table."""

import dataclasses
import json

import pytest

from jaxeff.core.errors import UserError
from jaxeff.lab.ablation import Variant
from jaxeff.lab.progress import Lines, Progress
from jaxeff.lab.results import Results
from jaxeff.lab.run import run
from jaxeff.lab.sweep import best, beyond
from jaxeff.objectives import Causal
from tests.lab.test_ablation import Table, cache, no_costs, small

__all__ = ["cache", "no_costs"]  # fixtures


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Pages without their plots, which take longer than all else here."""
    monkeypatch.setattr("jaxeff.lab.report.drawings", lambda results: [])


def plain(value):
    return value


def towards(**goals):
    """Bits per byte that are least at a model's goal, in ratios of learning rates."""

    def bits(part):
        ratio = part.experiment.optim.lr / goals[part.model]
        return 1 + max(ratio, 1 / ratio) / 100

    return bits


@pytest.mark.parametrize(
    ("found", "chosen", "following"),
    [
        ({1e-3: 3.0, 3e-3: 2.0, 1e-2: 2.5}, 3e-3, None),
        ({1e-3: 3.0, 3e-3: 2.0, 1e-2: 1.5}, 1e-2, 0.0333),
        ({1e-3: 1.0, 3e-3: 2.0, 1e-2: 2.5}, 1e-3, 0.000333),
        ({1e-2: 1.5, 1e-3: 3.0, 3e-3: 2.0}, 1e-2, 0.0333),
        ({0.1: 1.0, 0.2: 2.0}, 0.1, 0.05),
        ({1e-3: 3.0, 3e-3: 2.0, 1e-2: None}, 3e-3, None),
        ({1e-3: None, 3e-3: 2.0, 1e-2: 3.0}, 3e-3, None),
        ({1e-3: None, 1e-2: None}, None, 1e-4),
        ({1e-3: 2.0}, 1e-3, None),
        ({0.0: 2.0, 1e-3: 3.0}, 0.0, None),
        ({}, None, None),
    ],
)
def test_the_next_rate_lies_beyond_the_end_that_is_best(found, chosen, following):
    assert best(found, plain) == chosen
    assert beyond(found, plain) == (following and pytest.approx(following))


@pytest.mark.parametrize(
    ("found", "chosen", "following"),
    [
        ({1e-3: 2.0, 3e-3: 2.0, 1e-2: 2.0}, 3e-3, None),
        ({1e-3: 2.0, 3e-3: 2.0, 1e-2: 3.0}, 3e-3, None),
        ({1e-3: 3.0, 3e-3: 2.0, 1e-2: 2.0}, 3e-3, None),
        ({1e-3: 2.0, 1e-2: 2.0}, 1e-3, 1e-4),
        ({1e-4: 3.0, 1e-3: 2.0, 1e-2: 2.0}, 1e-3, None),
    ],
)
def test_of_equal_rates_one_inside_is_chosen(found, chosen, following):
    assert best(found, plain) == chosen
    assert beyond(found, plain) == following


def test_a_rate_close_to_its_neighbour_is_not_rounded_away():
    assert beyond({1.0: 2.0, 1.0001: 1.0}, plain) > 1.0001


def test_a_sweep_widens_until_the_best_rate_lies_inside(tmp_path, no_costs):
    table = Table(towards(mha=0.1, mqa=0.0001))
    results = run(small(widen=3), tmp_path, train=table)
    mha, mqa = results.rows
    assert [*mha.sweep] == [0.001, 0.01, 0.1, 1.0] and (mha.best_lr, mha.lr_at_edge) == (0.1, False)
    assert [*mqa.sweep] == [1e-5, 0.0001, 0.001, 0.01] and (mqa.best_lr, mqa.lr_at_edge) == (0.0001, False)
    assert [part for model, part in table.done if model == "mha"] == [
        "lr-0.001", "lr-0.01", "lr-0.1", "lr-1.0", "seed-0", "seed-1"
    ]  # fmt: skip
    stored = json.loads((tmp_path / "results.json").read_text())
    assert [[*row["sweep"]] for row in stored["rows"]] == [[str(lr) for lr in row.sweep] for row in results.rows]
    assert stored["protocol"]["widen"] == 3
    page = (tmp_path / "report.html").read_text()
    assert "Sweeps may widen" in page and "at most 3 more for each model" in page and "at an end of" not in head(page)


def head(page: str) -> str:
    return page[: page.index('<h2 id="results">')]


def test_widening_is_bounded_and_the_headline_says_what_was_not_found(tmp_path, no_costs):
    results = run(small(widen=2), tmp_path, train=Table(towards(mha=0.003, mqa=100.0)))
    assert [len(row.sweep) for row in results.rows] == [3, 4] and results.rows[1].best_lr == 1.0
    says = (
        "the best learning rate of mqa (1, the highest of 4 tried) lies at an end of its sweep, so a better one may lie"
    )
    assert says in head((tmp_path / "report.html").read_text())


def test_all_models_at_an_end_are_named(tmp_path, no_costs):
    run(small(), tmp_path, train=Table(towards(mha=0.0001, mqa=100.0)))
    page = head((tmp_path / "report.html").read_text())
    assert (
        "learning rates of mha (0.001, the lowest of 2 tried) and mqa (0.01, the highest of 2 tried) lie at an" in page
    )
    assert "Sweeps may widen" not in (tmp_path / "report.html").read_text()


def test_a_rate_that_diverges_ends_the_widening(tmp_path, no_costs):
    def bits(part):
        lr = part.experiment.optim.lr
        return None if lr > 0.05 else 3 - lr

    row = run(small(widen=3), tmp_path, train=Table(bits)).rows[0]
    assert (row.best_lr, row.sweep, row.lr_at_edge) == (0.01, {0.001: 2.999, 0.01: 2.99, 0.1: None}, False)


def test_lower_rates_are_tried_where_all_diverge(tmp_path, no_costs):
    def above(limit):
        return Table(lambda part: None if part.experiment.optim.lr > limit else 2.0 - part.experiment.optim.lr)

    results = run(small(widen=3), tmp_path / "a", train=above(0.0005))
    assert results.rows[0].best_lr == 0.0001 and [*results.rows[0].sweep] == [1e-5, 1e-4, 1e-3, 1e-2]
    with pytest.raises(
        UserError, match="'mha' diverged at every learning rate of the sweep: 1e-06, 1e-05, 0.0001, 0.001, 0.01"
    ):
        run(small(widen=3), tmp_path / "b", train=above(0.0))


def test_one_rate_is_never_widened(tmp_path, no_costs):
    table = Table(towards(mha=1.0, mqa=1.0))
    results = run(small(lrs=(0.01,)), tmp_path, train=table)
    assert all(part.startswith("seed") for _, part in table.done)
    assert [row.sweep for row in results.rows] == [{}, {}] and not any(row.lr_at_edge for row in results.rows)
    page = (tmp_path / "report.html").read_text()
    assert "no rate was chosen by a sweep" in page and "at each of" not in page


def test_a_variant_widens_the_rates_of_its_own(tmp_path, no_costs):
    variants = (Variant("base"), Variant("own", lrs=(0.5, 0.1)), Variant("single", lrs=(0.1,)))
    goals = towards(base=0.0099, own=2.0, single=9.0)
    results = run(small(variants=variants, widen=3), tmp_path, train=Table(goals))
    assert [[*row.sweep] for row in results.rows] == [[0.001, 0.01, 0.1], [0.1, 0.5, 2.5, 12.5], []]
    assert "Models with one rate only had no sweep" in (tmp_path / "report.html").read_text()


WIDER = [
    *(("mha", part) for part in ("lr-0.001", "lr-0.01", "lr-0.1", "lr-1.0", "seed-0", "seed-1")),
    *(("mqa", part) for part in ("lr-0.001", "lr-0.01", "lr-0.0001", "seed-0", "seed-1")),
]


@pytest.mark.parametrize("n", [1, 3, 4, 9])
def test_an_interrupted_widening_goes_on_with_what_is_missing(tmp_path, no_costs, n):
    goals = towards(mha=0.1, mqa=0.001)
    first, second = Table(goals, stop_after=n), Table(goals)
    with pytest.raises(KeyboardInterrupt):
        run(small(widen=3), tmp_path, train=first)
    results = run(small(widen=3), tmp_path, train=second)
    assert first.done + second.done == WIDER
    assert run(small(widen=3), tmp_path, train=Table()) == results


def test_only_one_model_widens_alone(tmp_path, no_costs):
    goals, table = towards(mha=0.1, mqa=0.001), Table(towards(mha=0.1, mqa=0.001))
    results = run(small(widen=3), tmp_path, only="mqa", train=table)
    assert table.done == WIDER[6:] and results.missing == ("mha",)
    assert run(small(widen=3), tmp_path, train=(rest := Table(goals))).missing == () and rest.done == WIDER[:6]


def test_higher_scores_widen_towards_what_is_higher(tmp_path, no_costs):
    base = dataclasses.replace(small().base, objective=Causal(follow="accuracy"))
    bits = towards(mha=0.1, mqa=0.1)
    results = run(small(base=base, widen=3), tmp_path, train=Table(lambda part: -bits(part)))
    assert [row.best_lr for row in results.rows] == [0.1, 0.1]


def test_totals_grow_with_the_work(tmp_path, no_costs, capsys):
    progress = Lines(every=0.0)
    run(small(widen=3), tmp_path, train=Table(towards(mha=0.1, mqa=0.001)), progress=progress)
    out = capsys.readouterr().out
    assert "[2/8] mha lr-0.01:" in out and "[3/9] mha lr-0.1:" in out and "[11/11] mqa seed-1: test" in out
    assert progress.n_done == progress.n_parts == 11 and progress.estimate.steps == 0
    again = Progress()
    run(small(widen=3), tmp_path, train=Table(), progress=again)
    assert again.n_done == again.n_parts == 11 and again.estimate.steps == 0


def test_the_time_of_the_last_run_is_kept_and_shown(tmp_path, no_costs):
    results = run(small(), tmp_path, train=Table())
    units = [json.loads(path.read_text()) for path in (tmp_path / "units").rglob("*.json")]
    assert len(units) == 10 and results.finished == max(unit["finished"] for unit in units)
    assert Results.from_json((tmp_path / "results.json").read_text()) == results
    page = (tmp_path / "report.html").read_text()
    assert f'Last run finished on <time datetime="{results.finished}">{results.finished[:10]}</time>' in page


def test_the_width_of_the_baseline_is_held(tmp_path, no_costs):
    rows = run(small(), tmp_path / "matched", train=Table()).rows
    assert rows[0].varied == 88, "8/3 of 32, up to a multiple of 8"
    assert rows[1].varied == small().matched("mqa")[1] > 88
    assert "<td>88</td>" in (tmp_path / "matched" / "report.html").read_text()
    assert [row.varied for row in run(small(match="none"), tmp_path / "none", train=Table()).rows] == [None, None]
