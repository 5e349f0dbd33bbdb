"""The protocol, with training replaced by a table: what is run, in which order, once, and for which config."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

import jaxeff
from jaxeff.core.errors import UserError
from jaxeff.data import Bytes, Grammar, TextData
from jaxeff.lab.ablation import Ablation, Variant, describe, load, stages
from jaxeff.lab.progress import Bars, Lines, shown
from jaxeff.lab.run import run
from jaxeff.mixers import GQA, MHA, MQA, LayerNorm
from jaxeff.models.block import Block
from jaxeff.models.lm import LM
from jaxeff.models.stack import Stage
from jaxeff.objectives import Causal
from jaxeff.train.experiment import Experiment, Train


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("JAXEFF_CACHE", str(tmp_path_factory.getbasetemp() / "jaxeff-cache"))


def small(**changes) -> Ablation:
    fields = {
        "name": "small",
        "base": Experiment(
            model=LM(vocab_size=259, d_model=32, stages=(Stage(("gqa",), 2),)),
            data=TextData(Grammar(n_documents=60), Bytes(), seq_len=32, batch_size=2),
            train=Train(steps=6, log_every=2),
        ),
        "variants": (stages("mha", Block(MHA(n_heads=2))), stages("mqa", Block(MQA(n_heads=2)))),
        "lrs": (0.001, 0.01),
        "seeds": (0, 1),
        "sweep_steps": 3,
        "widen": 0,
        "contexts": (8, 16),
        "decode_tokens": 2,
        "timing_rounds": 1,
    }
    return Ablation(**fields | changes)


class Table:
    """Stands for training: bits per byte by (model, learning rate), and a list of what was asked for."""

    def __init__(self, bits=lambda part: 2.0, stop_after=None):
        self.bits, self.stop_after, self.done = bits, stop_after, []

    def __call__(self, part, workdir, prepared, progress):
        if self.stop_after is not None and len(self.done) >= self.stop_after:
            raise KeyboardInterrupt
        self.done.append((part.model, part.name))
        progress.step(part, part.steps, 1.0, 100.0)
        return {"score": self.bits(part), "steps": [1, 2], "losses": [3.0, 2.0], "seconds": 0.1}


@pytest.fixture
def no_costs(monkeypatch):
    """Costs that need no compiler."""

    def measure(experiments, batch, contexts, *rest):
        decode = [{"context": c, "first_token_s": 0.1, "token_s": 0.01, "state_bytes": 8} for c in contexts]
        return {
            n: {"tokens_per_s": 1e4, "flops_per_token": 1e6, "memory": {"temporary": 9}, "decode": decode}
            for n in experiments
        }

    monkeypatch.setattr("jaxeff.lab.run.measure", measure)


@pytest.fixture
def no_figures(monkeypatch):
    """Reports whose figures stay undrawn, as drawing takes longer than all else here."""
    monkeypatch.setattr("jaxeff.lab.report.inline", lambda plot: [])
    monkeypatch.setattr("jaxeff.lab.take_along.files", lambda plot: {})


EVERY = [(m, p) for m in ("mha", "mqa") for p in ("lr-0.001", "lr-0.01", "seed-0", "seed-1")]


def test_models_are_the_outer_loop_and_every_part_is_run_once(tmp_path, no_costs):
    table = Table()
    results = run(small(), tmp_path, train=table)
    assert table.done == EVERY
    assert [row.name for row in results.rows] == ["mha", "mqa"] and not results.missing
    again = Table()
    assert run(small(), tmp_path, train=again) == results
    assert again.done == []
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert json.loads((tmp_path / "results.json").read_text())["rows"][1]["difference"]["mean"] == 0


@pytest.mark.parametrize("n", [0, 1, 3, 5, 7])
def test_an_interrupted_ablation_goes_on_with_what_is_missing(tmp_path, no_costs, no_figures, n):
    first, second = Table(stop_after=n), Table()
    with pytest.raises(KeyboardInterrupt):
        run(small(), tmp_path, train=first)
    run(small(), tmp_path, train=second)
    assert first.done + second.done == EVERY


def test_the_best_rate_on_validation_is_kept_and_the_edge_marked(tmp_path, no_costs, no_figures):
    seen = []

    def bits(part):
        lr, best = part.experiment.optim.lr, {"mha": 0.01, "mqa": 0.003}[part.model]
        seen.append((part.model, part.split, lr))
        return abs(lr - best) + 1

    results = run(small(lrs=(0.001, 0.003, 0.01)), tmp_path, train=Table(bits))
    assert [row.best_lr for row in results.rows] == [0.01, 0.003]
    assert [row.lr_at_edge for row in results.rows] == [True, False]
    assert {(model, lr) for model, split, lr in seen if split == "test"} == {("mha", 0.01), ("mqa", 0.003)}


def test_a_rate_that_diverges_loses_and_all_of_them_are_an_error(tmp_path, no_costs, no_figures):
    results = run(small(), tmp_path / "a", train=Table(lambda part: None if part.experiment.optim.lr == 0.01 else 2.0))
    assert results.rows[0].best_lr == 0.001 and results.rows[0].sweep[0.01] is None
    assert results.rows[1].best_lr == 0.001 and (tmp_path / "a" / "report.html").read_text().count("diverged") == 2
    with pytest.raises(UserError, match="'mha' diverged at every learning rate"):
        run(small(), tmp_path / "b", train=Table(lambda part: None))


def test_only_one_model(tmp_path, no_costs, no_figures):
    table = Table()
    results = run(small(), tmp_path, only="mqa", train=table)
    assert table.done == EVERY[4:]
    assert results.missing == ("mha",) and results.rows[0].difference(results.baseline_row) is None
    assert "--only mqa" in results.rows[0].reproduce
    with pytest.raises(UserError, match="no model of the ablation 'small' is called 'mqq'; did you mean 'mqa'"):
        run(small(), tmp_path, only="mqq", train=table)
    assert run(small(), tmp_path, train=table).missing == ()
    assert sorted(table.done) == sorted(EVERY)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"sweep_steps": 4}, "ablation.sweep_steps: 3 there, 4 now"),
        (
            {"base": dataclasses.replace(small().base, train=Train(steps=7, log_every=2))},
            "base.train.steps: 6 there, 7 now",
        ),
        (
            {"base": dataclasses.replace(small().base, data=TextData(Grammar(n_documents=70), Bytes(), seq_len=32))},
            "n_documents: 60",
        ),
    ],
)
def test_another_config_never_shares_the_folder(tmp_path, no_costs, no_figures, changed, says):
    run(small(), tmp_path, train=Table())
    with pytest.raises(UserError, match=says):
        run(small(**changed), tmp_path, train=Table())


def test_models_match_and_share_the_order_of_the_data():
    ablation = small()
    a, b = (ablation.experiment(name, 0.01, seed=1) for name in ablation.names)
    assert a.data == b.data and a.data.seed == a.seed == b.seed == 1
    sizes = [jaxeff.count(ablation.matched(name)[0].specs) for name in ablation.names]
    assert abs(sizes[1] / sizes[0] - 1) <= 0.01
    plain = dataclasses.replace(ablation, match="none")
    assert jaxeff.count(plain.matched("mqa")[0].specs) < 0.99 * sizes[0]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"variants": ()}, "variants must be at least one"),
        ({"seeds": (1, 1)}, "seeds must be at least one and all different"),
        ({"lrs": ()}, "lrs must be at least one"),
        ({"sweep_steps": 0}, "sweep_steps must be at least 1"),
        ({"widen": -1}, "'small': widen must be at least 0, found -1"),
        (
            {"base": Experiment(LM(64, 32, max_positions=16))},
            "up to 18 tokens does not fit base.model.max_positions=16",
        ),
    ],
)
def test_impossible_ablations_are_refused(changed, says):
    with pytest.raises(UserError, match=says):
        small(**changed)


def test_plain_lines_tell_model_run_step_and_time_left(tmp_path, no_costs, no_figures, capsys):
    run(small(), tmp_path, train=Table(), progress=Lines(every=0.0))
    out = capsys.readouterr().out
    assert "[1/8] mha lr-0.001: 3 steps, lr 0.001, seed 0" in out
    assert "[8/8] mqa seed-1: step 6 of 6  loss 1.000  100 tokens/s" in out
    assert "[8/8] mqa seed-1: test 2.0000 bits per byte" in out and " left" in out


def test_bars_on_a_terminal(tmp_path, no_costs, no_figures):
    out = io.StringIO()
    bars = shown(Console(file=out, force_terminal=True, width=120))
    run(small(), tmp_path, train=Table(), progress=bars)
    bars.close()
    text = out.getvalue()
    assert isinstance(bars, Bars) and "[8/8] mqa seed-1: test 2.0000 bits per byte" in text and "run 8 of 8" in text


def test_a_config_without_an_ablation(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("def ablation():\n    return 3\n")
    with pytest.raises(UserError, match="must return an Ablation, found int"):
        load(path)


def test_descriptions_leave_defaults_out():
    assert describe(GQA(d_model=8, n_heads=2, window=(2, 0))) == "GQA(n_heads=2, window=(2, 0))"


def test_a_variant_is_any_change_to_the_experiment():
    changes = {"optim.name": "muon", "train.accumulate": 2, "data.tokenizer": Bytes(), "model.norm": LayerNorm()}
    ablation = small(variants=(Variant("base"), Variant("other", changes)), match="none")
    base, other = (ablation.experiment(name, 0.01, seed=0) for name in ablation.names)
    assert (other.optim.name, other.train.accumulate, other.model.norm) == ("muon", 2, LayerNorm())
    assert base.optim.name == "adamw" and base.model.stages == other.model.stages
    assert "optim.name='muon'" in ablation.words("other")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optim.nmae": "muon"}, "variant 'other': .*optim.nmae: Optim has no field 'nmae'; did you mean 'name'"),
        ({"optim.name": "mion"}, "variant 'other': .*no optimizer is called 'mion'; did you mean 'muon'"),
        (
            {"objective.follow": "accuracy"},
            "follows the score 'accuracy', the base 'bits_per_byte': rows must share one",
        ),
        ({"optim.lr": 0.1}, "variant 'other' sets optim.lr, which the ablation's lrs set for all variants"),
        ({"data.seed": 1}, "sets data.seed, which the ablation's seeds set"),
    ],
)
def test_a_change_that_cannot_be_is_refused_before_any_work(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        run(small(variants=(Variant("base"), Variant("other", changes))), tmp_path, train=Table())


def test_splits_that_the_protocol_needs(tmp_path):
    base = small().base
    without = dataclasses.replace(base, data=dataclasses.replace(base.data, test_fraction=0.0))
    with pytest.raises(UserError, match="the data of 'mha' have no test split"):
        run(small(base=without), tmp_path, train=Table())


def test_a_final_run_stops_where_training_is_lost_and_a_sweep_does_not():
    ablation = small()
    final, swept = ablation.experiment("mha", 0.01, 0), ablation.experiment("mha", 0.01, 0, sweep=True)
    assert final.train.max_bad_steps == ablation.base.train.max_bad_steps and final.train.steps == 6
    assert swept.train.max_bad_steps > swept.train.steps == 3


def test_a_score_of_which_higher_is_better_chooses_the_highest(tmp_path, no_costs):
    base = dataclasses.replace(small().base, objective=Causal(follow="accuracy"))
    table = Table(lambda part: part.experiment.optim.lr + (part.model == "mqa"))
    results = run(small(base=base), tmp_path, train=table)
    assert [row.best_lr for row in results.rows] == [0.01, 0.01] and results.best_row.name == "mqa"
    page = (tmp_path / "report.html").read_text()
    assert "Highest test accuracy: mqa" in page and "bits per byte and differences" not in page


def test_sizes_that_were_not_matched_are_not_called_equal(tmp_path, no_costs, no_figures):
    run(small(match="none"), tmp_path, train=Table())
    page = (tmp_path / "report.html").read_text()
    assert "equal size" not in page and "not matched" in page
