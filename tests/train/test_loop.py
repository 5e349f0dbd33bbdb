"""The loop in one process: what it writes, and going on from anywhere."""

import json
import math
import shutil
import sys
import types

import jax
import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.evaluate.perplexity import evaluate
from jaxeff.train.checkpoint import Checkpoints
from jaxeff.train.experiment import diff
from jaxeff.train.loop import fit, restore_weights
from jaxeff.train.progress import Lines
from jaxeff.train.step import make_step, start
from jaxeff.train.workdir import locked, read, stored
from tests.train.tiny import experiment, repeated, same


def stop_after(n: int):
    """Asks to stop once n steps are done."""
    asked = iter(range(1, 10**6))
    return lambda: next(asked) >= n


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """(result, workdir) of the uninterrupted run. Not to be written to."""
    workdir = tmp_path_factory.mktemp("whole")
    return fit(experiment(), workdir, prepared=prepared), workdir


@pytest.fixture
def copy(whole, tmp_path):
    """A workdir of the finished run that may be spoilt."""
    return shutil.copytree(whole[1], tmp_path / "copy")


def test_what_a_run_leaves(whole, prepared):
    result, workdir = whole
    assert (result.step, result.stopped) == (8, False)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.lines and [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        assert {"loss", "grad_norm", "lr", "tokens", "tokens_per_s", "seconds"} <= line.keys()
        assert ("bits_per_byte" in line) == (line["step"] % 4 == 0)
    batches = prepared.train()
    assert lines[-1]["tokens"] == sum(int(next(batches)["loss_mask"].sum()) for _ in range(8))
    batches.close()
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert result.bits_per_byte == lines[-1]["bits_per_byte"]
    record = read(workdir)
    assert record["corpus"] == prepared.fingerprint and record["versions"]["jax"] == jax.__version__
    assert record["device"]["platform"] == "cpu" and "git" in record
    assert stored(workdir) == experiment()


def test_second_call_has_nothing_to_do(copy, prepared, whole):
    before = (copy / "metrics.jsonl").read_bytes()
    result = fit(experiment(), copy, prepared=prepared)
    assert result.step == 8 and (copy / "metrics.jsonl").read_bytes() == before
    assert same(result.state, whole[0].state)


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_going_on_after_a_stop_is_exact(whole, prepared, tmp_path, stop):
    first = fit(experiment(), tmp_path, prepared=prepared, stop=stop_after(stop))
    assert first.stopped and first.step == stop
    # How often is saved and logged may change in between.
    second = fit(experiment("train.save_every=3", "train.keep=1"), tmp_path, prepared=prepared)
    assert repeated(second.lines) == repeated(whole[0].lines)
    assert same(second.state, whole[0].state)


def test_checkpoint_goes_to_another_mesh_and_back(prepared, whole, tmp_path):
    """1 -> 4 -> 1 devices, each part on another mesh."""
    spread = ("mesh.fsdp=2", "mesh.tensor=2")
    fit(experiment(), tmp_path, prepared=prepared, stop=stop_after(2))
    second = fit(experiment(*spread), tmp_path, prepared=prepared, stop=stop_after(3))
    assert second.step == 5 and len(second.state.params["embed"].sharding.device_set) == 4
    saved = Checkpoints(tmp_path, read_only=True)
    alone, _ = saved.restore(make_step(experiment()).abstract, 5)
    saved.close()
    assert same(alone, second.state)
    third = fit(experiment(), tmp_path, prepared=prepared)
    losses = [line["loss"] for line in third.lines]
    np.testing.assert_allclose(losses, [line["loss"] for line in whole[0].lines], rtol=1e-5)


def truncate(folder):
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def flip(folder):
    for path in (folder / "state").rglob("d/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x55
        path.write_bytes(content)


def empty(folder):
    for path in (p for p in folder.rglob("*") if p.is_file()):
        path.write_bytes(b"")


def lose_record(folder):
    shutil.rmtree(folder / "record")


@pytest.mark.parametrize("damage", [truncate, flip, empty, lose_record])
def test_damaged_checkpoint_falls_back(copy, whole, prepared, capsys, damage):
    damage(copy / "checkpoints" / "00000008")
    result = fit(experiment(), copy, prepared=prepared)
    said = capsys.readouterr()
    assert "00000008 is damaged" in said.err and said.out == ""
    assert repeated(result.lines) == repeated(whole[0].lines) and same(result.state, whole[0].state)
    assert (copy / "damaged" / "00000008").is_dir()


def test_all_checkpoints_damaged(copy, prepared):
    """Refused, and again refused: what is there is not thrown away for a fresh start."""
    before = (copy / "metrics.jsonl").read_bytes()
    for folder in (copy / "checkpoints").iterdir():
        empty(folder)
    for _ in range(2):
        with pytest.raises(UserError, match="no checkpoint in .* can be read"):
            fit(experiment(), copy, prepared=prepared)
    assert (copy / "metrics.jsonl").read_bytes() == before


def test_cut_off_line_of_metrics_is_dropped(copy, prepared, whole):
    path = copy / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 9, "lo')
    fit(experiment(), copy, prepared=prepared)
    assert path.read_text() == (whole[1] / "metrics.jsonl").read_text()


def test_best_checkpoint_is_kept(prepared, tmp_path):
    """A rate that destroys what was learnt: the best one is early, and outlives the newest two."""
    e = experiment("optim.lr=1", "optim.schedule=constant", "train.eval_every=1", "train.save_every=1")
    result = fit(e, tmp_path, prepared=prepared)
    best = min(result.lines, key=lambda line: line["bits_per_byte"])["step"]
    checkpoints = Checkpoints(tmp_path, read_only=True)
    assert checkpoints.best() == best
    assert checkpoints.steps() == sorted({best, 7, 8})
    checkpoints.close()


def test_another_config_is_refused_with_the_fields(copy, prepared):
    with pytest.raises(UserError) as error:
        fit(experiment("optim.lr=0.5", "model.d_model=32"), copy, prepared=prepared)
    assert "optim.lr: 0.01 there, 0.5 here" in str(error.value)
    assert "model.d_model: 16 there, 32 here" in str(error.value)


def test_another_text_is_refused(copy, prepared):
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record | {"corpus": "0" * 64}))
    with pytest.raises(UserError, match="another text"):
        fit(experiment(), copy, prepared=prepared)


def test_position_in_other_batches_is_refused(prepared):
    batches = prepared.train()
    position = batches.get_state()
    with pytest.raises(UserError, match="batch_size = 8, this run has 4"):
        batches.set_state(position | {"batch_size": 8})
    batches.close()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": 3}', "\udcff"])
def test_damaged_run_json(copy, prepared, content):
    (copy / "run.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match="run.json is damaged"):
        fit(experiment(), copy, prepared=prepared)


def test_checkpoints_without_run_json(copy, prepared):
    (copy / "run.json").unlink()
    with pytest.raises(UserError, match="holds checkpoints but no run.json"):
        fit(experiment(), copy, prepared=prepared)


def test_one_process_at_a_time(prepared, tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="in use by another process .pid"):
        fit(experiment(), tmp_path, prepared=prepared)
    with locked(tmp_path):
        pass


def test_non_finite_losses_stop_the_run(prepared, tmp_path):
    e = experiment("optim.lr=1e30", "train.max_bad_steps=3")
    with pytest.raises(UserError, match=r"step \d: 3 steps in a row had a non-finite loss or gradient .loss (nan|inf).*lower optim.lr"):
        fit(e, tmp_path, prepared=prepared, report=Lines())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] is None and lines[-1]["skipped"] > 0


def test_weights_of_another_run(copy, prepared, tmp_path, whole):
    """They start the run; optimizer, step and data do not come along."""
    workdir = tmp_path / "second"
    result = fit(experiment(f"train.init_from={copy}", "mesh.fsdp=2"), workdir, prepared=prepared, stop=stop_after(1))
    assert result.step == 1 and result.lines[0]["loss"] < whole[0].lines[0]["loss"] - 0.1
    with pytest.raises(UserError, match="model of other sizes"):
        fit(experiment(f"train.init_from={copy}", "model.pattern.0.mlp.d_hidden=48"), tmp_path / "third", prepared=prepared)
    with pytest.raises(UserError, match="is no run"):
        fit(experiment("train.init_from=nowhere"), tmp_path / "fourth", prepared=prepared)


def test_restored_weights(whole, tmp_path):
    weights, step = restore_weights(whole[1])
    assert step == 8 and same(weights, whole[0].state.params)
    (tmp_path / "run.json").write_bytes((whole[1] / "run.json").read_bytes())
    with pytest.raises(UserError, match="has no checkpoint yet"):
        restore_weights(tmp_path)


def test_weights_of_a_run_on_more_devices_than_here(copy):
    record = json.loads((copy / "run.json").read_text())
    record["config"]["mesh"]["data"] = 64
    (copy / "run.json").write_text(json.dumps(record))
    assert restore_weights(copy)[1] == 8


def test_classes_of_a_config_file_are_found_again(tmp_path, monkeypatch):
    from jaxeff.train.experiment import load
    from jaxeff.train.workdir import claim

    path = tmp_path / "own.py"
    path.write_text(
        "import dataclasses\nfrom jaxeff.objectives import Causal\nfrom tests.train.tiny import experiment, without\n\n"
        "@dataclasses.dataclass(frozen=True)\nclass Own(Causal):\n    extra: int = 3\n\n"
        "def config():\n    return without(experiment(), objective=Own(extra=4))\n"
    )
    e = load(path)
    claim(tmp_path, e, "f")
    monkeypatch.delitem(sys.modules, type(e.objective).__module__)
    path.unlink()
    assert stored(tmp_path).objective.extra == 4 and diff(stored(tmp_path), e) == []


def test_sizes_of_data_and_model(prepared, tmp_path):
    with pytest.raises(UserError, match="tokenizer has 259 ids but model.vocab_size=100"):
        fit(experiment("model.vocab_size=100"), tmp_path, prepared=prepared)
    with pytest.raises(UserError, match="data.seq_len=32 is longer than model.max_positions=31"):
        fit(experiment("model.max_positions=31"), tmp_path, prepared=prepared)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("RESOURCE_EXHAUSTED: ... No space left on device")])
def test_disk_full_while_saving(copy, prepared, monkeypatch, error, tmp_path):
    """One clear error; the checkpoints before stay."""
    import orbax.checkpoint as ocp

    def full(*args, **kwargs):
        raise error

    first = fit(experiment(), tmp_path / "w", prepared=prepared, stop=stop_after(2))
    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", full)
        with pytest.raises(UserError, match="cannot write to .*checkpoints: no space left on device"):
            fit(experiment(), tmp_path / "w", prepared=prepared)
    again = fit(experiment(), tmp_path / "w", prepared=prepared, stop=stop_after(1))
    assert (first.step, again.step) == (2, 3)


def test_internal_errors_while_saving_pass(prepared, monkeypatch, tmp_path):
    import orbax.checkpoint as ocp

    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(ocp.CheckpointManager, "save", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        fit(experiment(), tmp_path, prepared=prepared)


def test_folder_that_cannot_be(prepared, tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot write to"):
            fit(experiment(), workdir, prepared=prepared)


def test_event_files(prepared, tmp_path, monkeypatch):
    e = experiment("train.tensorboard=true")
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"pip install 'jaxeff\[tensorboard\]'"):
        fit(e, tmp_path, prepared=prepared)
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    result = fit(e, tmp_path, prepared=prepared, stop=stop_after(2))
    assert written[0] == (str(tmp_path / "tensorboard"), 1) and written[-1] == "closed"
    assert ("loss", result.lines[1]["loss"], 2) in written


def test_no_validation_split(tmp_path):
    result = fit(experiment("data.valid_fraction=0"), tmp_path, stop=stop_after(4))
    assert result.bits_per_byte is None and result.step == 4


def test_validation_equals_evaluate(whole, prepared):
    e, result = experiment(), whole[0]
    found = evaluate(e.model, result.state.weights, prepared.eval("validation"), prepared.tokenizer.token_bytes, limit=2)
    assert found["bits_per_byte"] == result.bits_per_byte
    assert math.log2(math.e) * found["loss"] * found["n_tokens"] / found["n_bytes"] == pytest.approx(found["bits_per_byte"])


def test_fresh_runs_of_one_seed_are_equal():
    e = experiment()
    assert same(start(e, make_step(e)), start(e, make_step(e)))
