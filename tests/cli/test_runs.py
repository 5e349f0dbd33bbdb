"""`jaxeff runs`: which runs it finds, what it tells of them, and what it says of folders and questions that cannot be."""

import json
import os
import subprocess
import sys
import time

import pytest

from jaxeff.cli import main
from jaxeff.lab.folders import CAUSAL, followed
from jaxeff.lab.runs import Condition, listed, table
from jaxeff.objectives import Causal
from jaxeff.train.workdir import locked
from tests.cli.workdirs import copied, edited, refused, relogged, said


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def several(trained, tmp_path):
    """Three runs as an ablation keeps them; `better` has the best score, and `adafactor` another optimizer."""
    for name, gain, changes in (
        ("worse", 0.5, {"optim__lr": 3e-4}),
        ("better", -0.5, {}),
        ("other", 0.0, {"optim__name": "lion"}),
    ):
        run = copied(trained, tmp_path / "runs" / name / "seed-0", **changes)
        relogged(
            run, lambda line, gain=gain: line | {k: v + gain for k, v in line.items() if k == "eval_bits_per_byte"}
        )
    return tmp_path


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def names(text: str) -> list[str]:
    return [row[0].split("/")[-2] for row in rows(text)[1:]]


def test_one_run(trained, capsys):
    head, row = rows(said(capsys, "runs", trained))
    assert " ".join(head) == "folder step state bits per byte loss tokens seconds written goodput"
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert row[:4] == [str(trained), "8/8", "finished", f"{last['eval_bits_per_byte']:.4f}"]
    assert row[4:6] == [f"{last['loss']:.4f}", f"{last['tokens']:,}"]
    assert row[7] == time.strftime("%Y-%m-%d", time.localtime(os.path.getmtime(trained / "metrics.jsonl")))


def test_best_first_wherever_they_lie(several, capsys):
    assert names(said(capsys, "runs", several)) == ["better", "other", "worse"]
    assert names(said(capsys, "runs", several, several / "runs" / "worse")) == ["better", "other", "worse"]
    for run in (several / "runs").glob("*/*"):
        edited(run, {"objective__follow": "accuracy"})
        relogged(run, lambda line, run=run: line | {"eval_accuracy": 0.9 if "worse" in str(run) else 0.1})
    assert names(said(capsys, "runs", several))[0] == "worse"


def test_sorted_by_another_column(several, capsys):
    os.utime(several / "runs" / "other" / "seed-0" / "metrics.jsonl", (9e9, 9e9))
    assert names(said(capsys, "runs", several, "--sort", "written"))[0] == "other"
    assert names(said(capsys, "runs", several, "--sort", "optim.lr", "--show", "optim.lr"))[0] == "worse"
    assert names(said(capsys, "runs", several, "--sort", "folder")) == ["better", "other", "worse"]
    assert "no column is called 'tokns'; did you mean 'tokens'" in refused(capsys, "runs", several, "--sort", "tokns")


def test_states(trained, tmp_path, capsys):
    stopped = copied(trained, tmp_path / "stopped", train__steps=100)
    (stopped / "checkpoints" / "00000010").mkdir()
    made = copied(trained, tmp_path / "made", train__steps=100)
    (made / "metrics.jsonl").unlink()
    for step in (made / "checkpoints").iterdir():
        step.rmdir()
    running = copied(trained, tmp_path / "running", train__steps=100)
    with locked(running):
        found = {row[0].rpartition("/")[2]: row[1:4] for row in rows(said(capsys, "runs", tmp_path))[1:]}
    assert found["stopped"][:2] == ["10/100", "stopped"] and found["running"][:2] == ["8/100", "running"]
    assert found["made"] == ["0/100", "not", "begun"]
    assert "running" not in said(capsys, "runs", running, "--show", "seed").splitlines()[1].split()


def test_broken_folders_are_a_line_each(several, trained, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    texts = {"cut": "{", "list": "[]", "deep": "[" * 100000, "bytes": "\udcff", "other": '{"config": {}}'}
    for name, text in texts.items():
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert main(["runs", str(several), str(tmp_path / "empty")]) == 0
    found = capsys.readouterr()
    assert names(found.out) == ["better", "other", "worse"]
    lines = found.err.splitlines()
    assert len(lines) == 6 and all(line.startswith("jaxeff: ") for line in lines)
    assert all("run.json" in line for line in lines[:5]) and "empty holds no training run" in lines[5]
    capsys.readouterr()
    assert main(["runs", str(tmp_path / "broken")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("no training run that can be read")


@pytest.mark.parametrize("garbage", [b"\xff\xfe\n{\n", b'{"step": "x"}\n', b"[1]\nnull", b'{"step": 9, "eval_bits'])
def test_garbage_among_the_metrics(trained, tmp_path, capsys, garbage):
    run = copied(trained, tmp_path / "run")
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(garbage)
    whole = rows(said(capsys, "runs", trained))[1]
    assert rows(said(capsys, "runs", run))[1][1:6] == whole[1:6]
    (run / "metrics.jsonl").write_bytes(garbage)
    assert rows(said(capsys, "runs", run))[1][1:6] == ["8/8", "finished", "\u2013", "\u2013", "\u2013"]


def test_numbers_that_are_none(trained, tmp_path, capsys):
    run = copied(trained, tmp_path / "run", train="none", objective={"type": "mine.Own", "x": 1})
    relogged(run, lambda line: line | {"loss": None, "tokens": "many", "seconds": True})
    assert rows(said(capsys, "runs", run))[1][1:][0] == "8/\u2013"


def test_where(several, capsys):
    def found(*conditions):
        return sorted(names(said(capsys, "runs", several, *(w for c in conditions for w in ("--where", c)))))

    assert found("optim.name=adamw") == ["better", "worse"]
    assert found("optim.name!=adamw") == ["other"]
    assert found("optim.lr>1e-3") == found("optim.lr >= 0.01") == ["better", "other"]
    assert found("optim.lr<1e-3") == found("optim.lr=0.0003") == found("optim.lr<=3e-4") == ["worse"]
    assert found("optim.lr>1e-3", "optim.name=lion") == ["other"]
    assert (
        found("data.source=grammar") == found("model.tied=true") == found("base=none") == ["better", "other", "worse"]
    )
    assert said(capsys, "runs", several, "--where", "seed=7") == "none of 3 runs has seed=7\n"


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("optim.lrr=1", "no run has a field 'optim.lrr'; did you mean 'optim.lr'"),
        ("lr=1", "no run has a field 'lr'; did you mean 'optim.lr'?"),
        ("optim.lr", "expected PATH=VALUE, or != < > <= >=, such as optim.name=adamw"),
        ("=3", "expected PATH=VALUE"),
        ("optim.lr>fast", "> compares numbers, found 'fast'"),
    ],
)
def test_conditions_that_cannot_be(trained, capsys, condition, words):
    line = refused(capsys, "runs", trained, "--where", condition)
    assert words in line and f"--where {condition}" in line
    if "=" in condition[1:] and "no run" in words:
        assert words in refused(capsys, "runs", trained, "--show", condition.partition("=")[0])


def test_a_field_that_only_some_have():
    assert Condition.parse("optim.rank!=8").holds({}) and not Condition.parse("optim.rank=8").holds({})
    assert not Condition.parse("optim.rank<8").holds({"optim.rank": None})
    assert not Condition.parse("seed=1").holds({"seed": True}) and Condition.parse("a=x").holds({"a": "x"})


def test_columns_of_the_config(several, capsys):
    head, *body = rows(said(capsys, "runs", several, "--show", "optim.name", "--show", "data.tokenizer"))
    assert head[-2:] == ["optim.name", "data.tokenizer"]
    assert [row[-2:] for row in body] == [["adamw", "Bytes"], ["lion", "Bytes"], ["adamw", "Bytes"]]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120])
def test_narrow_terminals(several, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(several)
    shown = said(capsys, "runs", ".").splitlines()
    body = [line for line in shown if not line.startswith("left out")]
    assert len(body) == 4 and all(len(line) <= max(width, 30) for line in body)
    assert "bits per byte" in body[0] and ("left out" in shown[-1]) is (width < 120)


def test_other_texts_are_named(several, capsys):
    run = next((several / "runs").glob("other/*"))
    body = json.loads((run / "run.json").read_text())
    body["data"]["corpus_fingerprint"] = "another"
    (run / "run.json").write_text(json.dumps(body))
    shown = said(capsys, "runs", several).splitlines()
    assert shown[-1] == "the runs are of 2 texts: scores compare within one text only"


def test_folders_that_cannot_be(trained, tmp_path, capsys):
    wrong = trained.with_name("trainde")
    assert "trainde is not a folder; did you mean 'trained'" in refused(capsys, "runs", wrong)
    assert "no training run (no run.json in it or in its folders)" in refused(capsys, "runs", tmp_path)
    with locked(tmp_path):
        assert "no training run yet: a process there has not done its first step" in refused(
            capsys, "top", "--workdir", tmp_path
        )
        assert "no training run yet: a process there" in refused(capsys, "report", tmp_path)
    assert "is not a folder" in refused(capsys, "runs", trained / "run.json")


def test_a_terminal_is_told_nothing(trained, tmp_path, capsys):
    copied(trained, tmp_path / "a\x1b[31mb\nc")
    assert "\x1b" not in said(capsys, "runs", tmp_path) and len(rows(said(capsys, "runs", tmp_path))) == 2


@pytest.mark.parametrize("follow", ["bits_per_byte", "loss", "perplexity", "accuracy"])
def test_the_score_is_told_as_the_objective_tells_it(follow):
    assert followed({"type": CAUSAL, "follow": follow}) == tuple(Causal(follow=follow).score)


def test_many_runs_without_jax(trained, tmp_path):
    for i in range(100):
        copied(trained, tmp_path / "runs" / f"run-{i}")
    begun = time.perf_counter()
    assert len(table(listed([tmp_path], print)).splitlines()) == 101
    assert time.perf_counter() - begun < 1
    code = f"import sys, jaxeff.cli; jaxeff.cli.main(['runs', {str(tmp_path)!r}]); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
