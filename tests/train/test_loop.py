"""The loop in one process: what fits it and what it refuses. Interruptions are in test_resume.py and test_kill.py."""

import json
import math
import os
import signal
import sys
import types

import pytest

from jaxeff.core.errors import UserError
from jaxeff.evaluate.scores import evaluate
from jaxeff.train.config_file import load
from jaxeff.train.config_json import diff
from jaxeff.train.loop import fit
from jaxeff.train.signals import Stopped, on_signal
from jaxeff.train.trained import load_trained
from jaxeff.train.workdir import read_run, stored_experiment
from tests.train.tiny import experiment, stop_after


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """(result, workdir) of a run that nothing interrupts. Not to be written to."""
    workdir = tmp_path_factory.mktemp("whole")
    return fit(experiment(), workdir, prepared=prepared), workdir


def test_metrics_hold_every_target_token(whole, prepared):
    batches = prepared.train()
    expected = [int(next(batches)["loss_mask"].sum()) for _ in range(8)]
    batches.close()
    lines = [json.loads(line) for line in (whole[1] / "metrics.jsonl").read_text().splitlines()]
    assert lines == whole[0].lines
    assert [line["tokens"] for line in lines] == [sum(expected[: i + 1]) for i in range(8)]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(b["seconds"] > a["seconds"] for a, b in zip(lines, lines[1:]))


def test_validation_is_evaluate(whole, prepared):
    e, result = experiment(), whole[0]
    found = evaluate(e.objective, e.model, result.weights, prepared.eval("validation"), limit=2)
    assert found.scores["bits_per_byte"] == result.score
    nats, n_bytes = found.sums["nll"].total, found.sums["bits"].weight
    assert math.log2(math.e) * nats / n_bytes == pytest.approx(result.score)


def test_position_in_other_batches_is_refused(prepared):
    batches = prepared.train()
    position = batches.get_state()
    with pytest.raises(UserError, match="batch_size = 8, this run has 4"):
        batches.set_state(position | {"batch_size": 8})
    batches.close()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": 3}', "\udcff"])
def test_damaged_record_of_the_run(prepared, tmp_path, content):
    (tmp_path / "run.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match="run.json (cannot be read|is not what a run writes)"):
        fit(experiment(), tmp_path, prepared=prepared)


def test_weights_of_a_model_of_other_sizes(whole, prepared, tmp_path):
    with pytest.raises(
        UserError, match="init_from=.*other weights: blocks/0/mlp/down is .2, 32, 16. there, .2, 48, 16. here"
    ):
        fit(
            experiment(f"train.init_from={whole[1]}", "model.stages.0.pattern.0.mlp.d_hidden=48"),
            tmp_path,
            prepared=prepared,
        )


def test_weights_of_another_run_on_a_mesh(whole, prepared, tmp_path):
    result = fit(
        experiment(f"train.init_from={whole[1]}", "mesh.fsdp=2"), tmp_path, prepared=prepared, stop=stop_after(1)
    )
    assert result.lines[0]["loss"] < whole[0].lines[0]["loss"] - 0.1


def test_run_of_more_devices_than_here(tmp_path):
    """Its weights can be evaluated all the same."""
    fit(experiment("train.steps=1"), tmp_path)
    record = read_run(tmp_path)
    record["config"]["mesh"]["data"] = 64
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert load_trained(tmp_path).step == 1


def test_classes_of_a_config_file_are_found_again(prepared, tmp_path, monkeypatch):
    path = tmp_path / "own.py"
    path.write_text(
        "import dataclasses\nfrom jaxeff.objectives import Causal\nfrom tests.train.tiny import experiment, without\n\n"
        "@dataclasses.dataclass(frozen=True)\nclass Own(Causal):\n    extra: int = 3\n\n"
        "def config():\n    return without(experiment('train.steps=1'), objective=Own(extra=4))\n"
    )
    e = load(path)
    fit(e, tmp_path / "w", prepared=prepared)
    monkeypatch.delitem(sys.modules, type(e.objective).__module__)
    with pytest.raises(
        UserError, match="names 'jaxeff_config_.*Own', which is not there.* name that file: --config FILE"
    ):
        stored_experiment(tmp_path / "w")
    load(path)
    again = stored_experiment(tmp_path / "w")
    assert again.objective.extra == 4 and diff(again, e) == []


def interrupted(*_):
    """Ctrl-C where a program is compiled."""
    os.kill(os.getpid(), signal.SIGINT)


STARTS = {  # a config, and what fails instead of what function
    "memory": ("model.d_model=40000000", None, None),
    "optimizer": ("optim.b1=0.85", "train.step.optimizer", lambda *_: 1 / 0),
    "data": ("data.source.n_documents=1", None, None),
    "vocabulary": ("model.vocab_size=20", None, None),
    "initial values": ("train.steps=2", "train.loop.initial", lambda *_: 1 / 0),
    "first step": ("train.steps=2", "train.loop.put", lambda *_: 1 / 0),
    "its numbers": ("train.steps=2", "train.loop.jax.device_get", lambda *_: 1 / 0),
    "compilation": ("train.steps=2", "train.loop.put", interrupted),
}


@pytest.mark.parametrize("new", [True, False], ids=["new", "there"])
@pytest.mark.parametrize("case", STARTS)
def test_a_start_that_comes_to_nothing_leaves_nothing(tmp_path, monkeypatch, case, new):
    monkeypatch.setenv("JAXEFF_CACHE", str(tmp_path / "cache"))
    workdir = tmp_path / "parent" / "run"
    if not new:
        workdir.mkdir(parents=True)
    assignment, function, failing = STARTS[case]
    with monkeypatch.context() as patch:
        if function is not None:
            patch.setattr(f"jaxeff.{function}", failing)
        with pytest.raises((UserError, ZeroDivisionError, Stopped)), on_signal() as stop:
            fit(experiment(assignment), workdir, stop=stop)
    assert workdir.exists() != new and not [*workdir.rglob("*")]
    assert fit(experiment("train.steps=1", "optim.lr=1e-3"), workdir).step == 1
    with pytest.raises(UserError, match="another config"):
        fit(experiment("train.steps=1"), workdir)


def test_nothing_that_a_workdir_holds_is_run(whole, prepared, tmp_path):
    record = read_run(whole[1])
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    record["config_sources"] = {"jaxeff_config_x": trap.read_text()}
    record["config"]["objective"]["type"] = "trap.Own"
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="names 'trap.Own', which is not there"):
        stored_experiment(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_sizes_of_data_and_model(prepared, tmp_path):
    with pytest.raises(UserError, match="model.vocab_size=100 is smaller than the data's vocabulary"):
        fit(experiment("model.vocab_size=100"), tmp_path, prepared=prepared)
    with pytest.raises(UserError, match="data.seq_len=32 is longer than model.max_positions=31"):
        fit(experiment("model.max_positions=31"), tmp_path, prepared=prepared)


def test_internal_errors_while_saving_keep_their_kind(prepared, monkeypatch, tmp_path):
    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        fit(experiment(), tmp_path, prepared=prepared)


def test_folders_that_cannot_be(prepared, tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot write to"):
            fit(experiment(), workdir, prepared=prepared)


def test_event_files(prepared, tmp_path, monkeypatch):
    """With a writer of the same shape as tensorboardX's, which is an extra."""
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    result = fit(experiment("train.tensorboard=true"), tmp_path, prepared=prepared, stop=stop_after(2))
    assert written[0] == (str(tmp_path / "tensorboard"), 1) and written[-1] == "closed"
    assert ("loss", result.lines[1]["loss"], 2) in written


def test_no_validation_split(tmp_path):
    result = fit(experiment("data.valid_fraction=0"), tmp_path, stop=stop_after(4))
    assert result.score is None and result.step == 4
