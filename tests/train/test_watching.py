"""What a run tells of itself while it trains: utilisation, what its time goes into, traces."""

import sys
import types

import jax
import jax.numpy as jnp
import pytest

from jaxeff.core.errors import UserError
from jaxeff.core.peaks import peak
from jaxeff.plan.chips import CHIPS
from jaxeff.train import clock, utilisation
from jaxeff.train.clock import Clock, moment
from jaxeff.train.loop import fit
from jaxeff.train.progress import summary
from jaxeff.train.run_files import SPENT
from jaxeff.train.tracing import Profile
from jaxeff.train.utilisation import model_flops
from tests.train.tiny import experiment, stop_after


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXEFF_CACHE", str(tmp_path_factory.mktemp("cache")))
        return experiment().data.prepare()


@pytest.fixture
def passing(monkeypatch):
    """A time that passes only where a test says so."""
    now = types.SimpleNamespace(at=100.0)
    monkeypatch.setattr(clock, "time", types.SimpleNamespace(perf_counter=lambda: now.at, time=lambda: 1000.0 + now.at))
    return now


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("TPU v5 lite", CHIPS["v5e"].flops),
        ("TPU v5", CHIPS["v5p"].flops),
        ("TPU v6 lite", CHIPS["v6e"].flops),
        ("TPU v9", None),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Tesla V100-SXM2-16GB", None),
        ("cpu", None),
        ("", None),
    ],
)
def test_peaks(kind, expected):
    assert peak(kind) == expected


def test_a_line_tells_where_its_time_went(passing):
    watch = Clock()
    watch.ideal, watch.since = 0.5, moment("1970-01-01T00:18:10+00:00")
    with watch.waiting("compile"):
        passing.at += 9
    passing.at += 1
    first = watch.told(1)
    assert "mfu" not in first, "the step that was compiled says nothing"
    assert first["goodput"] == pytest.approx(1 / 20)
    for _ in range(2):
        with watch.waiting("data_wait"):
            passing.at += 0.5
        passing.at += 1.5
    with watch.waiting("checkpoint"):
        passing.at += 1
    second = watch.told(3)
    assert {name: second[name] for name in SPENT} == pytest.approx(
        {"compute": 4, "data_wait": 1, "checkpoint": 1, "compile": 9, "evaluation": 0, "profile": 0}
    )
    assert second["mfu"] == pytest.approx(2 * 0.5 / 5)
    watch.mark()
    with watch.waiting("evaluation"):
        passing.at += 4
    passing.at += 1
    third = watch.told(4)
    assert sum(third[name] for name in SPENT) == pytest.approx(5) and third["mfu"] == pytest.approx(0.5)
    assert third["goodput"] == pytest.approx(5 / 30) and watch.seconds == pytest.approx(16)


def test_steps_that_were_lost_are_no_goodput(passing):
    """A start that goes on from a checkpoint counts what was computed up to there."""
    watch = Clock()
    watch.computed_before, watch.since = 3.0, 1090.0
    passing.at += 2
    assert watch.told(7)["goodput"] == pytest.approx(5 / 12)
    watch.computed_before = None
    assert "goodput" not in watch.told(7), "what a checkpoint did not record is not made up"


def test_flops_are_those_of_the_models_own_products():
    e = experiment()
    shape, d, hidden, vocabulary = (4, 32), 16, 32, 259
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in ("tokens", "segment_ids", "positions")}
    batch["loss_mask"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    layer = 2 * d * d + 2 * d * 8 + 3 * d * hidden
    attention = 2 * 32 * d
    assert model_flops(e, batch) == 3 * 2 * 4 * 32 * (2 * (layer + attention) + d * vocabulary)
    assert model_flops(experiment("train.accumulate=2"), batch) == model_flops(e, batch)


def test_lines_of_a_run(prepared, tmp_path, monkeypatch):
    first = fit(experiment(), tmp_path, prepared=prepared, stop=stop_after(3)).lines
    assert all({*SPENT, "goodput"} <= line.keys() and "mfu" not in line for line in first), "no CPU has a peak"
    monkeypatch.setattr(utilisation, "peak", {"cpu": 1e15}.get)
    lines = fit(experiment(), tmp_path, prepared=prepared).lines
    assert lines[:3] == first and ["mfu" in line for line in lines] == [False] * 4 + [True] * 4
    assert all(0 < line["goodput"] < 1 and 0 < line.get("mfu", 0.5) < 1 for line in lines)
    assert [line["evaluation"] > 0 for line in lines[:4]] == [False, False, False, True]


def test_the_progress_line():
    line = {"step": 3, "loss": 2.5, "tokens_per_s": 10.0, "skipped": 0}
    assert summary(line | {"mfu": 0.412, "goodput": 0.9}) == "loss 2.5000  10 tokens/s  mfu 41%  goodput 90%"


def test_some_steps_are_traced(prepared, tmp_path):
    said = []
    report = types.SimpleNamespace(say=said.append, stage=lambda *_: None, step=lambda *_: None, warn=said.append)
    fit(experiment(), tmp_path, prepared=prepared, report=report, stop=stop_after(3), profile=Profile(2, 3))
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))
    assert said[-1].startswith(f"trace of steps 2 to 3 of this start in {tmp_path / 'profile'}")
    with pytest.raises(UserError, match="steps 2 to 6 cannot be traced: this start has 5 steps to do"):
        fit(experiment(), tmp_path, prepared=prepared, profile=Profile(2, 6))


def test_a_trace_that_is_cut_short_is_written(prepared, tmp_path):
    fit(experiment(), tmp_path, prepared=prepared, stop=stop_after(2), profile=Profile(2, 8))
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))


def test_steps_that_cannot_be_traced():
    with pytest.raises(UserError, match="steps 0 to 3 cannot be traced"):
        Profile(0, 3)


def test_weights_and_biases(prepared, tmp_path, monkeypatch):
    """With a module of the same shape as wandb, which is an extra."""
    told = []

    class Error(Exception):
        pass

    def init(**options):
        if options["mode"] == "online":
            raise Error("no API key")
        told.append(options)
        return types.SimpleNamespace(
            log=lambda found, step: told.append((step, found)), finish=lambda: told.append("end")
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Error=Error, Settings=dict))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for _ in range(2):
        lines = fit(experiment("train.wandb=true"), tmp_path, prepared=prepared, stop=stop_after(2)).lines
    first, second = (found for found in told if isinstance(found, dict))
    assert first["mode"] == "offline" and first["dir"] == str(tmp_path) and first["config"]["seed"] == 0
    assert first["id"] == second["id"], "all starts of a run are one run"
    steps = [found for found in told if isinstance(found, tuple)]
    assert [step for step, _ in steps] == [1, 2, 3, 4] and steps[3][1]["eval_loss"] == lines[3]["eval_loss"]
    assert told.count("end") == 2 and all(None not in found.values() for _, found in steps)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match=r"Weights & Biases \(WANDB_MODE=online\): no API key"):
        fit(experiment("train.wandb=true"), tmp_path, prepared=prepared)
