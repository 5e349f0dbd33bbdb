"""Whatever interrupts a run, it goes on as if nothing had happened, or says in one line why it cannot."""

import dataclasses
import errno
import fcntl
import itertools
import json
import sys
import time
from pathlib import Path

import jax
import pytest

from jaxeff.core.errors import UserError
from jaxeff.objectives import Causal
from jaxeff.train import loop
from jaxeff.train.checkpoint import Checkpoints, opened, sealed
from jaxeff.train.loop import fit
from jaxeff.train.progress import Silent
from jaxeff.train.trained import load_trained
from jaxeff.train.workdir import read_metrics, read_run
from tests.train.tiny import experiment, repeated, same, stop_after


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """A run that nothing interrupts, of 8 steps with checkpoints at 4 and 8."""
    return fit(experiment(), tmp_path_factory.mktemp("whole"), prepared=prepared)


class Recorder(Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.said, self.warned, self.steps = [], [], []

    def say(self, text):
        self.said.append(text)

    def warn(self, text):
        self.warned.append(text)

    def step(self, step, steps, line, verdict=None):
        self.steps.append(step)


def test_a_whole_run(whole, prepared):
    assert whole.step == 8 and not whole.stopped
    assert [line["step"] for line in whole.lines] == list(range(1, 9))
    assert {line["step"] for line in whole.lines if "eval_bits_per_byte" in line} == {4, 8}
    assert whole.score == whole.lines[-1]["eval_bits_per_byte"]
    fields = {"loss", "grad_norm", "lr", "tokens", "tokens_per_s", "seconds", "compute", "data_wait"}
    assert all(line.keys() >= fields for line in whole.lines)
    assert whole.lines[-1]["tokens"] > whole.lines[0]["tokens"] > 0


@pytest.mark.parametrize("at", [1, 3, 4, 6])
def test_stopped_and_gone_on(at, whole, prepared, tmp_path):
    first = fit(experiment(), tmp_path, prepared=prepared, stop=stop_after(at))
    assert first.stopped and first.step == at and first.score is None
    report = Recorder()
    second = fit(experiment(), tmp_path, prepared=prepared, report=report)
    assert report.said == [f"going on from step {at} of 8"] and report.steps == list(range(at + 1, 9))
    assert repeated(second.lines) == repeated(whole.lines)
    assert same(second.state, whole.state)
    assert [start["step"] for start in read_run(tmp_path)["starts"]] == [0, at]


def test_finished_run_is_not_run_again(whole, prepared, tmp_path):
    fit(experiment(), tmp_path, prepared=prepared)
    report = Recorder()
    again = fit(experiment(), tmp_path, prepared=prepared, report=report)
    assert not again.stopped and report.steps == [] and again.score == whole.score


PARTS = [
    pytest.param((), marks=pytest.mark.shipped),
    ("optim.ema=0.9", "precision=float16"),
    ("precision=bfloat16", "train.accumulate=2", "optim.name=muon"),
]


@pytest.mark.parametrize("settings", PARTS)
def test_every_part_of_the_state_comes_back(settings, prepared, tmp_path):
    e = experiment(*settings)
    a = fit(e, tmp_path / "a", prepared=prepared)
    fit(e, tmp_path / "b", prepared=prepared, stop=stop_after(3))
    b = fit(e, tmp_path / "b", prepared=prepared)
    assert repeated(a.lines) == repeated(b.lines) and same(a.state, b.state)
    weights, _ = Checkpoints(tmp_path / "b", read_only=True).restore_weights(loop.make_step(e).abstract.params, 8)
    assert same(weights, a.state.weights)


@pytest.mark.parametrize(("before", "after"), [((), ("mesh.data=2", "mesh.tensor=2")), (("mesh.fsdp=4",), ())])
def test_another_mesh(before, after, whole, prepared, tmp_path):
    """Written on one mesh, read on another: the values are the same bits, the losses the same to rounding."""
    first = fit(experiment(*before), tmp_path, prepared=prepared, stop=stop_after(4))
    step = loop.make_step(experiment(*after))
    state, _ = Checkpoints(tmp_path, Causal().score, read_only=True).restore(step.abstract, 4)
    assert same(state, first.state)
    wanted = {x.sharding for x in jax.tree.leaves(step.abstract)}
    assert {x.sharding for x in jax.tree.leaves(state)} == wanted
    second = fit(experiment(*after), tmp_path, prepared=prepared)
    for here, there in zip(second.lines, whole.lines, strict=True):
        assert here["loss"] == pytest.approx(there["loss"], rel=1e-5)


def test_lines_after_the_checkpoint_are_written_once(whole, prepared, tmp_path):
    """As after a kill: lines that the checkpoint has not seen, the last one cut off."""
    fit(experiment(), tmp_path, prepared=prepared, stop=stop_after(4))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 5, "loss": 0.0}) + '\n{"step": 6, "lo')
    assert repeated(fit(experiment(), tmp_path, prepared=prepared).lines) == repeated(whole.lines)


def spoil(step_folder: Path, how: str):
    """Damages a checkpoint."""
    data = max((p for p in (step_folder / "state").rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    if how == "cut":
        data.write_bytes(content[: len(content) // 2])
    elif how == "lost":
        data.unlink()
    elif how == "flipped":
        for i in range(len(content) // 4, len(content), 97):
            content[i] ^= 0x10
        data.write_bytes(content)
    elif how == "record":
        (step_folder / "record" / "metadata").write_text("{")


@pytest.mark.parametrize("how", ["cut", "lost", "flipped", "record"])
def test_damaged_newest_checkpoint(how, whole, prepared, tmp_path, capsys):
    fit(experiment(), tmp_path, prepared=prepared)
    spoil(tmp_path / "checkpoints" / "00000008", how)
    again = fit(experiment(), tmp_path, prepared=prepared)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "00000008 is damaged" in err
    assert (tmp_path / "damaged" / "00000008").is_dir()
    assert repeated(again.lines) == repeated(whole.lines) and same(again.state, whole.state)
    # And it was saved anew.
    assert Checkpoints(tmp_path, Causal().score, read_only=True).steps() == [4, 8]


def test_wrong_checksum_is_noticed(prepared, tmp_path):
    fit(experiment(), tmp_path, prepared=prepared)
    record = tmp_path / "checkpoints" / "00000008" / "record" / "metadata"
    stored = opened(json.loads(record.read_text()))
    stored["checksum"]["params"] ^= 1
    record.write_text(json.dumps(sealed(stored)))
    report = Recorder()
    fit(experiment(), tmp_path, prepared=prepared, report=report)
    assert len(report.warned) == 1 and "wrong checksum of params" in report.warned[0]


def test_an_edited_record_is_noticed(whole, prepared, tmp_path):
    fit(experiment(), tmp_path, prepared=prepared)
    record = tmp_path / "checkpoints" / "00000008" / "record" / "metadata"
    stored = json.loads(record.read_text())
    record.write_text(json.dumps(stored | {"tokens": stored["tokens"] + 1}))
    report = Recorder()
    again = fit(experiment(), tmp_path, prepared=prepared, report=report)
    assert len(report.warned) == 1 and "wrong checksum of the record" in report.warned[0]
    assert repeated(again.lines) == repeated(whole.lines)


def test_all_checkpoints_damaged(prepared, tmp_path):
    fit(experiment(), tmp_path, prepared=prepared)
    for folder in (tmp_path / "checkpoints").iterdir():
        spoil(folder, "cut")
    with pytest.raises(UserError, match="no checkpoint in .* can be read"):
        fit(experiment(), tmp_path, prepared=prepared, report=Recorder())
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2, "nothing is lost"


def test_the_best_checkpoint_is_kept(prepared, tmp_path):
    """A learning rate that ruins what was learnt: the best is not among the newest."""
    e = experiment(
        "train.steps=12", "train.eval_every=2", "train.save_every=2", "train.keep=2", "optim.lr=3", "optim.warmup=1"
    )
    lines = fit(e, tmp_path, prepared=prepared).lines
    scores = {line["step"]: line["eval_bits_per_byte"] for line in lines if "eval_bits_per_byte" in line}
    best = min(scores, key=scores.get)
    found = Checkpoints(tmp_path, Causal().score, read_only=True)
    assert best < 10 and found.steps() == sorted({best, 10, 12}) and found.best() == best


def test_in_use(prepared, tmp_path):
    with open(tmp_path / "lock", "w") as other:
        other.write("4711")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"in use by another process \(pid 4711\)"):
            fit(experiment(), tmp_path, prepared=prepared)
    assert fit(experiment("train.steps=1"), tmp_path, prepared=prepared).step == 1


def test_another_config(prepared, tmp_path):
    fit(experiment(), tmp_path, prepared=prepared, stop=stop_after(1))
    with pytest.raises(
        UserError, match=r"another config \(.*d_hidden: 32 there, 48 now, optim.lr: 0.01 there, 0.5 now\)"
    ):
        fit(experiment("optim.lr=0.5", "model.stages.0.pattern.0.mlp.d_hidden=48"), tmp_path, prepared=prepared)
    # What changes no number may change.
    free = experiment("train.log_every=3", "train.save_every=none", "train.keep=5", "train.eval_batches=1")
    assert [line["step"] for line in fit(free, tmp_path, prepared=prepared).lines] == [1, 3, 4, 6, 8]


def test_another_corpus(prepared, tmp_path):
    fit(experiment(), tmp_path, prepared=prepared, stop=stop_after(1))
    with pytest.raises(UserError, match="another corpus .*fingerprint .* there, 0123 now"):
        fit(experiment(), tmp_path, prepared=dataclasses.replace(prepared, fingerprint="0123"))


def test_checkpoints_without_a_record_of_the_run(prepared, tmp_path):
    fit(experiment(), tmp_path, prepared=prepared, stop=stop_after(1))
    (tmp_path / "run.json").unlink()
    with pytest.raises(UserError, match="no run.json"):
        fit(experiment(), tmp_path, prepared=prepared)


def test_record_of_the_run(whole, prepared, tmp_path):
    fit(experiment("train.steps=1"), tmp_path, prepared=prepared)
    run = read_run(tmp_path)
    assert run["config"]["train"]["steps"] == 1 and run["corpus"] == prepared.fingerprint
    start = run["starts"][0]
    assert (
        start["packages"]["jax"]
        and start["device"].startswith("1 x ")
        and start.keys() >= {"git", "python", "command", "mesh"}
    )


def test_metrics_that_cannot_be_read(whole, prepared, tmp_path):
    fit(experiment(), tmp_path, prepared=prepared, stop=stop_after(5))
    path = tmp_path / "metrics.jsonl"
    good = path.read_bytes().splitlines(keepends=True)
    report = Recorder()
    path.write_bytes(
        good[0] + b"garbage\n" + b"[1]\n" + b'{"loss": 1}\n' + good[1] + b"\xff\n" + b"".join(good[2:]) + b'{"cut'
    )
    fit(experiment(), tmp_path, prepared=prepared, report=report)
    assert report.warned == [f"{path}: no metrics can be read from line 2, 3, 4, 6: dropped, the others are kept"]
    assert repeated(read_metrics(tmp_path)) == repeated(whole.lines)
    path.unlink()
    report = Recorder()
    fit(experiment(), tmp_path, prepared=prepared, report=report)
    assert report.warned == [f"{path} has no lines of steps 1 to 8: training goes on without them"]


def test_loss_that_stays_nonfinite(prepared, tmp_path):
    e = experiment("optim.lr=1e30", "train.max_bad_steps=3", "train.steps=20")
    with pytest.raises(UserError, match=r"not finite in 3 steps in a row \(up to step (\d+)\)") as error:
        fit(e, tmp_path, prepared=prepared)
    lines = read_metrics(tmp_path)
    assert all(None in (line["loss"], line["grad_norm"]) for line in lines[-3:]) and lines[-1]["skipped"] >= 3
    assert f"step {lines[-1]['step']}" in str(error.value)
    json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1], parse_constant=lambda name: pytest.fail(name))
    assert Checkpoints(tmp_path, Causal().score, read_only=True).steps()
    # The same again says the same.
    with pytest.raises(UserError, match="not finite"):
        fit(e, tmp_path, prepared=prepared)


def test_start_from_the_weights_of_another_run(whole, prepared, tmp_path):
    a = fit(experiment("seed=7"), tmp_path / "a", prepared=prepared)
    e = experiment(f"train.init_from={tmp_path / 'a'}", "optim.lr=0", *PARTS[1])
    b = fit(e, tmp_path / "b", prepared=prepared)
    assert same(a.state.params, b.state.params) and same(a.state.params, b.state.ema)
    with pytest.raises(UserError, match="init_from=.*holds no training run"):
        fit(experiment(f"train.init_from={tmp_path / 'c'}"), tmp_path / "d", prepared=prepared)


def test_tensorboard_is_an_extra(prepared, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"jaxeff\[tensorboard\]"):
        fit(experiment("train.tensorboard=true"), tmp_path, prepared=prepared)


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "no space left"), (errno.EROFS, "read-only file system")])
def test_disk_full_or_read_only_while_saving(code, words, whole, prepared, tmp_path, monkeypatch):
    fit(experiment(), tmp_path, prepared=prepared, stop=stop_after(4))

    def refuse(*args, **options):
        raise ValueError("INTERNAL: writing failed") from OSError(code, words)

    with monkeypatch.context() as context:
        context.setattr("orbax.checkpoint.CheckpointManager.save", refuse)
        with pytest.raises(UserError, match=f"cannot write to .*: {words}"):
            fit(experiment(), tmp_path, prepared=prepared)
    assert repeated(fit(experiment(), tmp_path, prepared=prepared).lines) == repeated(whole.lines), "nothing is lost"


def test_the_clock_is_set_while_it_saves(whole, prepared, tmp_path, monkeypatch):
    """Each look at the clock finds it most of an hour later."""
    real, looks = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: real() + 3000.0 * next(looks))
    assert repeated(fit(experiment("train.save_every=1"), tmp_path, prepared=prepared).lines) == repeated(whole.lines)
    assert Checkpoints(tmp_path, Causal().score, read_only=True).steps()[-2:] == [7, 8]


def test_evaluation_beside_a_running_job_changes_nothing(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXEFF_CACHE", str(tmp_path / "cache"))
    result = fit(experiment("train.steps=2"), tmp_path / "w")
    before = sorted(str(p) for p in (tmp_path / "w").rglob("*"))
    run = load_trained(tmp_path / "w")
    assert run.step == 2 and run.experiment == experiment("train.steps=2") and same(run.weights, result.state.weights)
    assert sorted(str(p) for p in (tmp_path / "w").rglob("*")) == before
