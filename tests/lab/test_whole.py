"""A whole ablation, small: corpus to report, stopped on the way, and one row again from its printed command."""

import json
import os
import signal

import pytest

from jaxeff.data import Bytes, Grammar, TextData
from jaxeff.lab.ablation import Ablation, stages
from jaxeff.lab.command import ablate
from jaxeff.lab.progress import Progress
from jaxeff.lab.run import run
from jaxeff.mixers import MHA, LinearAttention
from jaxeff.models.block import Block
from jaxeff.models.lm import LM
from jaxeff.models.stack import Stage
from jaxeff.train.experiment import Experiment, Train
from jaxeff.train.signals import Stopped

CONFIG = """
from tests.lab.test_whole import tiny as ablation
"""


def tiny() -> Ablation:
    return Ablation(
        name="tiny",
        base=Experiment(
            model=LM(vocab_size=259, d_model=16, stages=(Stage(("gqa",), 1),)),
            data=TextData(Grammar(n_documents=60), Bytes(), seq_len=32, batch_size=2),
            train=Train(steps=6, log_every=1, eval_batches=2),
        ),
        variants=(stages("mha", Block(MHA(n_heads=2))), stages("linear", Block(LinearAttention(n_heads=2)))),
        lrs=(1e-3, 1e-2),
        seeds=(0, 1),
        sweep_steps=3,
        widen=0,
        contexts=(8, 16),
        decode_tokens=2,
        timing_rounds=1,
    )


class Interrupt(Progress):
    """Sends a signal in the middle of a run, as a user or a scheduler does."""

    def step(self, part, step, loss, tokens_per_s):
        if (part.model, part.name, step) == ("linear", "seed-0", 3):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    os.environ["JAXEFF_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["JAXEFF_CACHE"]


def test_a_whole_ablation(tmp_path, capsys):
    config, whole = tmp_path / "tiny.py", tmp_path / "whole"
    config.write_text(CONFIG)
    with pytest.raises(Stopped):
        run(tiny(), whole, progress=Interrupt())
    kept = sorted(path.stem for path in (whole / "units" / "linear").iterdir())
    assert kept == ["lr-0.001", "lr-0.01"]
    assert json.loads((whole / "results.json").read_text())["missing"] == ["linear"]

    ablate(str(config), str(whole))
    out = capsys.readouterr().out
    assert "[5/8] linear lr-0.001: was finished before" in out and "[8/8] linear seed-1: test " in out
    results = json.loads((whole / "results.json").read_text())
    assert not results["missing"]
    for row in results["rows"]:
        assert row["flops_per_token"] > 6 * 0.3 * row["n_parameters"]
        assert row["tokens_per_s"] > 0 and len(row["decode"]) == 2
        assert row["curves"]["0"][0] == [1, 2, 3, 4, 5, 6]
    assert not (whole / "runs" / "mha" / "lr-0.01").exists(), "runs of the sweep are not kept"
    assert (whole / "runs" / "mha" / "seed-1" / "metrics.jsonl").exists()

    # The row again, by its printed command, in one go: the interrupted run must have lost nothing.
    words = results["rows"][1]["reproduce"].split()
    assert words[:3] == ["jaxeff", "ablate", str(config)] and words[3:5] == ["--only", "linear"]
    ablate(words[2], words[6], words[4])
    again = json.loads((tmp_path / "whole-linear" / "results.json").read_text())["rows"][0]
    for field in ("test", "sweep", "best_lr", "curves", "flops_per_token", "n_parameters"):
        assert again[field] == results["rows"][1][field]
