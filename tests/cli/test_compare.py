"""`jaxeff compare`: what differs, how the runs ended, and what it warns of."""

import json
import subprocess
import sys

import pytest

from jaxeff.cli import main
from jaxeff.lab.text_chart import chart, value
from tests.cli.workdirs import copied, edited, refused, relogged, said


@pytest.fixture
def pair(trained, tmp_path):
    """Two runs; the second has another learning rate and a score that is better by a tenth."""
    a = copied(trained, tmp_path / "a")
    b = copied(trained, tmp_path / "b", optim__lr=3e-4)
    relogged(b, lambda line: line | {k: v - 0.1 for k, v in line.items() if k == "eval_bits_per_byte"})
    return a, b


def evaluated_often(run, gap=0.0):
    relogged(run, lambda line: line | {"eval_bits_per_byte": 4 - line["step"] / 10 + gap})


def data(run, **changes):
    body = json.loads((run / "run.json").read_text())
    body["data"] |= changes
    (run / "run.json").write_text(json.dumps(body))


def row(text: str, begin: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(begin)).removeprefix(begin).split()


def test_what_differs_and_how_they_ended(pair, capsys):
    a, b = pair
    text = said(capsys, "compare", a, b)
    assert text.splitlines()[0].split() == ["A", str(a), "step", "8", "of", "8", "finished"]
    assert row(text, "optim.lr") == ["0.01", "0.0003"] and "optim.name" not in text and "warning" not in text
    score = json.loads((a / "metrics.jsonl").read_text().splitlines()[-1])["eval_bits_per_byte"]
    assert row(text, "validation bits per byte") == [f"{score:.4f}", f"{score - 0.1:.4f}", "-0.1000"]
    assert row(text, "  evaluated at step") == ["8", "8"] and row(text, "training loss ")[2] == "+0.0000"
    assert "lower is better: B is ahead by 0.1000" in text and "One seed each" in text
    assert "significant" not in text


def test_the_last_evaluations(pair, capsys):
    for run, gap in zip(pair, (0.0, 0.05), strict=True):
        evaluated_often(run, gap)
    text = said(capsys, "compare", *pair)
    assert "last 5 evaluations: A 3.2000 to 3.6000 (spread 0.4000), B 3.2500 to 3.6500 (spread 0.4000)" in text
    assert "no interval" in text and "validation bits per byte over tokens: o A, x B, # both" in text
    points = text.split("tokens   ")[-1].splitlines()[1:6]
    assert [line.split()[-1] for line in points] == ["+0.0500"] * 5


def test_a_run_and_itself(trained, capsys):
    text = said(capsys, "compare", trained, trained)
    assert "config: no field differs" in text and "both are equal" in text
    assert "training loss (nats per token, as logged) over tokens" in text and "o" not in "".join(drawn(text))


def drawn(text: str) -> list[str]:
    return [line.partition("|")[2] for line in text.splitlines() if "|" in line]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_chart_fits(pair, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = drawn(said(capsys, "compare", *pair))
    assert len(lines) == 12 and max(map(len, lines)) <= min(60, columns - 10)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"corpus_fingerprint": "f" * 40}, "and ffffffffffff): their scores do not compare"),
        ({"tokenizer": "e" * 40}, "the tokenizers differ (tokenizer"),
    ],
)
def test_other_data(pair, capsys, changes, words):
    data(pair[1], **changes)
    text = said(capsys, "compare", *pair)
    assert len([line for line in text.splitlines() if line.startswith("warning: ") and words in line]) == 1
    assert ("is ahead" in text) is ("tokenizer" in changes)  # bits per byte compare
    edited(pair[0], {"objective__follow": "loss"})
    edited(pair[1], {"objective__follow": "loss"})
    assert "is ahead" not in said(capsys, "compare", *pair)


def test_other_scores_and_other_parts_of_the_split(pair, capsys):
    edited(pair[0], {"objective__follow": "accuracy"})
    edited(pair[1], {"train__eval_batches": None})
    text = said(capsys, "compare", *pair)
    assert "warning: A follows accuracy, B bits per byte: their scores do not compare" in text
    assert "warning: A was evaluated on 2 batches of 4 rows of the validation split, B on all" in text
    assert "is ahead" not in text and "training loss (nats" in text


def test_another_class_without_its_unset_fields(pair, capsys):
    mixer = {
        "type": "jaxeff.mixers.linear_attention.LinearAttention",
        "n_heads": 4,
        "feature_map": "elu",
        "key_dim": None,
    }
    edited(pair[1], {"model__stages": [{"type": "jaxeff.models.stack.Stage", "pattern": [{"mixer": mixer}]}]})
    text = said(capsys, "compare", *pair)
    at = "model.stages.0.pattern.0.mixer"
    assert row(text, at + " ") == ["GQA", "LinearAttention"] and row(text, f"{at}.feature_map") == ["\u2013", "elu"]
    assert f"{at}.key_dim" not in text and f"{at}.n_heads" not in text


def test_runs_without_anything_logged(pair, capsys):
    (pair[0] / "metrics.jsonl").unlink()
    text = said(capsys, "compare", *pair)
    assert row(text, "training loss ")[0] == "\u2013" and drawn(text)
    (pair[1] / "metrics.jsonl").write_text("")
    assert not drawn(said(capsys, "compare", *pair))


def test_garbage_among_the_metrics(pair, capsys):
    with open(pair[1] / "metrics.jsonl", "ab") as file:
        file.write(b'\xff\n{"step": 3.5}\n{"step": 9, "lo')
    assert main(["compare", *map(str, pair)]) == 0
    found = capsys.readouterr()
    assert found.err == f"jaxeff: {pair[1]}/metrics.jsonl: 2 lines cannot be read, the others are shown\n"
    assert "B is ahead" in found.out


def test_folders_that_cannot_be(trained, tmp_path, capsys):
    assert "did you mean 'trained'" in refused(capsys, "compare", trained, trained.with_name("trianed"))
    assert "holds no training run (no run.json)" in refused(capsys, "compare", tmp_path, trained)
    (tmp_path / "run.json").write_text("{")
    assert "run.json cannot be read" in refused(capsys, "compare", trained, tmp_path)


def test_without_jax(pair):
    words = ["compare", *map(str, pair)]
    code = f"import sys, jaxeff.cli; jaxeff.cli.main({words!r}); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_chart():
    lines = chart([[(0, 0.0), (10, 1.0)], [(0, 1.0), (10, 0.0)]], y_form="{:g}", width=11, height=11).splitlines()
    field = [line.partition("|")[2].ljust(11) for line in lines[:11]]
    assert [line.index("o") for i, line in enumerate(field) if i != 5] == [10, 9, 8, 7, 6, 4, 3, 2, 1, 0]
    assert field[5].strip() == "#" and lines[0].startswith("1 |") and lines[10].startswith("0 |")
    assert lines[-1].split() == ["0", "10"]
    assert chart([[(5, 1.0)], []]).count("o") == 1  # one point, and no other
    with pytest.raises(ValueError, match="needs a point"):
        chart([[], []])


def test_values_between_points():
    curve = [(0, 0.0), (10, 1.0), (10, 2.0), (20, 3.0)]
    assert [value(curve, x) for x in (0, 5, 15, 20)] == [0.0, 0.5, 2.5, 3.0]
    assert value(curve, -1) is None and value(curve, 21) is None and value([], 0) is None
