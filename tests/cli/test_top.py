"""`jaxeff top`: what it shows of a run that trains, is silent, was stopped or is finished, and of several; wherever it is shown."""

import json
import os
import subprocess
import sys
import time
import types

import pytest

from jaxeff.lab import watching
from jaxeff.lab.text_chart import BLOCKS, sparkline
from jaxeff.lab.watching import Log, Watch, duration, follow, pace, shares
from jaxeff.train.workdir import locked
from tests.cli.workdirs import copied, edited, refused, relogged, said


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def run(trained, tmp_path):
    """A run of which half is done: a line each second, of which half is compute."""
    run = copied(trained, tmp_path / "half", train__steps=16)
    times = {"compute": 0.5, "data_wait": 0.25, "checkpoint": 0.15, "compile": 0.0, "evaluation": 0.1, "profile": 0.0}
    relogged(run, lambda line: line | times | {"mfu": 0.412, "goodput": 0.75, "tokens_per_s": 1234.5})
    return run


def test_a_run_that_trains(run, capsys):
    with locked(run):
        shown = said(capsys, "top", "--once", "--workdir", run).splitlines()
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert shown[0] == str(run) and shown[1].startswith("running; last line ")
    rows = {row.split("  ")[0]: " ".join(row.split("  ", 1)[1].split()) for row in shown[2:]}
    assert rows["step"] == "8 of 16 ##########.......... 50%"
    loss, curve = rows["loss"].split()
    assert loss == f"{last['loss']:.4f}" and len(curve) == 8 and (curve[0], curve[-1]) == (BLOCKS[-1], BLOCKS[0])
    assert rows["score"] == f"{last['eval_bits_per_byte']:.4f} bits per byte, at step 8"
    assert rows["speed"] == "1,234 tokens/s mfu 41%"
    assert rows["time"] == "compute 50% data wait 25% checkpoint 15% evaluation 10%"
    assert rows["goodput"] == "75% of the time since the first start"
    assert rows["time left"] == "8 s" and rows["checkpoint"].startswith("step 8, ")


def test_states(run, trained, capsys):
    assert "finished; last line" in said(capsys, "top", "--once", "--workdir", trained)
    stopped = said(capsys, "top", "--once", "--workdir", run)
    assert "stopped: no process trains here; last line" in stopped and "time left" not in stopped
    before = time.time() - 3600
    os.utime(run / "metrics.jsonl", (before, before))
    with locked(run):
        assert "running, but silent: its last line came 1 h ago" in said(capsys, "top", "--once", "--workdir", run)
        (run / "metrics.jsonl").unlink()
        assert "running; no line yet" in said(capsys, "top", "--once", "--workdir", run)


def test_several_have_a_line_each(run, trained, capsys):
    shown = said(capsys, "top", "--once", "--workdir", run.parent, "--workdir", trained).splitlines()
    assert shown[0].split() == "folder state step loss last line bits per byte speed mfu goodput curve".split()
    assert [line.split()[:3] for line in shown[1:]] == [
        [str(run), "stopped", "8/16"],
        [str(trained), "finished", "8/8"],
    ]


@pytest.mark.parametrize("width", [12, 40, 80])
def test_no_line_is_wider_than_the_terminal(run, trained, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for words in (["--workdir", run], ["--workdir", run, "--workdir", trained]):
        assert all(len(line) <= width for line in said(capsys, "top", "--once", *words).splitlines())


def test_what_cannot_be_read_is_counted(run, capsys):
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text('{"step": -1}\nnonsense\n' + text + '{"step": 9, "lo')
    edited(run, {"train__steps": "many"})
    shown = said(capsys, "top", "--once", "--workdir", run)
    assert "unreadable  2 lines of metrics.jsonl" in shown and "step        8\n" in shown


def test_a_log_is_read_on_as_it_grows_and_anew_when_it_is_another(run):
    log = Log(str(run))
    log.read()
    line = {"step": 9, "loss": 1.0, "tokens": 9}
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line)[:10])
        file.flush()
        log.read()
        assert len(log.losses) == 8 and log.bad == 0, "half a line is none yet"
        file.write(json.dumps(line)[10:] + "\n")
    log.read()
    assert list(log.losses) == [*range(1, 10)]
    (run / "new").write_text(json.dumps(line | {"step": 2}) + "\n")
    os.replace(run / "new", run / "metrics.jsonl")
    log.read()
    assert list(log.losses) == [2] and len(log.recent) == 1


def test_it_goes_on_until_the_run_is_over(run, monkeypatch, capsys):
    """The run trains when it is looked at first, is stopped at the second look and finished at the third."""
    sleeps = []
    watch = Watch([str(run)], pytest.fail)
    with locked(run):
        watch.text()
    assert not watch.over

    def sleep(seconds):
        sleeps.append(seconds)
        edited(run, {"train__steps": 8})

    monkeypatch.setattr(watching, "time", types.SimpleNamespace(time=time.time, sleep=sleep))
    follow(watch, 0.5)
    assert sleeps == [0.5] and watch.over and "finished" in capsys.readouterr().out


def test_nothing_to_show(tmp_path, capsys):
    assert "no training run" in refused(capsys, "top", "--workdir", tmp_path)
    assert "is not a folder" in refused(capsys, "top", "--workdir", tmp_path / "nowhere")


def test_numbers():
    lines = [{"step": 10 * i, "compute": 3.0, "compile": 9.0 * (i == 1), "data_wait": "long"} for i in range(3)]
    assert pace(lines) == pytest.approx(0.3) and shares(lines) == pytest.approx({"compute": 0.5, "compile": 0.5})
    assert pace(lines[:1]) is pace([]) is None and shares([]) == {}
    assert sparkline([], 5) == "" and sparkline([2.0, 2.0]) == 2 * BLOCKS[0]
    assert sparkline([4.0, 4.0, 0.0, 0.0], 2) == BLOCKS[-1] + BLOCKS[0]
    texts = ["0 s", "59 s", "1 min 1 s", "2 h", "1 day 1 h", "4 days"]
    assert [duration(seconds) for seconds in (-1, 59.4, 61, 7205, 90000, 4 * 86400)] == texts


def test_it_needs_no_jax():
    code = "import jaxeff.lab.watching, jaxeff.cli.top, sys; print({'jax', 'numpy', 'rich'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"
