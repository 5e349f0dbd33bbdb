"""`jaxeff train` as a process, killed at random moments and asked to stop."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from jaxeff.cli import main
from jaxeff.train.workdir import read_metrics
from tests.train.forked import Forked, done
from tests.train.tiny import repeated

KINDS = ("starting", "stepping", "saving", "saving", "starting", "saving", "stepping")
N_STEPS = 48
SET = [
    "--set",
    f"train.steps={N_STEPS}",
    "--set",
    "train.save_every=3",
    "--set",
    "train.eval_every=16",
    "--set",
    "train.eval_batches=1",
]
ADAPTED = """
from jaxeff.transforms import Int8, LoRA
from tests.train.tiny import experiment, without


def config():
    return without(experiment(), transforms=(Int8(), LoRA((("blocks/.*/mixer/(q|v)", 2),), dropout=0.1)))
"""


RARELY = ["--set", "train.save_every=24"]


def words(workdir: str, *more: str) -> list[str]:
    return ["train", "tiny.py", "--workdir", workdir, *SET, *more]


@pytest.fixture(scope="module")
def whole(folder, server):
    """The lines of a run that nothing interrupts; it also fills the caches."""
    done(server, words("whole", *RARELY), folder / "whole.log")
    return read_metrics(folder / "whole")


def until(process: Forked, happened, patience: float = 90.0):
    """Waits until something is true, or the process is over."""
    end = time.monotonic() + patience
    while process.poll() is None and not happened():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.001)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written just now."""
    return any("tmp" in p.name for p in (workdir / "checkpoints").glob("*"))


def test_killed_again_and_again(folder, server, whole):
    rng, workdir, kinds, half_written = random.Random(0), folder / "killed", [], 0
    for i, kind in enumerate(KINDS):
        process = Forked(server, words("killed"), folder / f"{i}.log")
        before = size(workdir / "metrics.jsonl")
        if kind == "starting":
            # Before, or while, the last checkpoint is read.
            time.sleep(rng.uniform(0.0, 1.0))
        else:
            grown = before + rng.randrange(200, 900)
            until(process, lambda grown=grown: size(workdir / "metrics.jsonl") > grown)
            if kind == "saving":
                until(process, lambda: saving(workdir))
            time.sleep(rng.uniform(0.0, 0.02))
        kinds.append("over" if process.poll() is not None else kind)
        process.send_signal(signal.SIGKILL)
        err = process.wait()
        half_written += saving(workdir)
        assert process.returncode in (-signal.SIGKILL, 0), err
        assert "damaged" not in err and "Traceback" not in err, err
    assert kinds.count("over") <= 1, kinds
    assert half_written >= 1, "saving was to be interrupted, and was hardly"
    done(server, words("killed"), folder / "last.log")
    lines = read_metrics(workdir)
    assert [line["step"] for line in lines] == list(range(1, N_STEPS + 1))
    assert repeated(lines) == repeated(whole)
    starts = json.loads((workdir / "run.json").read_text())["starts"]
    assert len({start["step"] for start in starts}) >= 3, "it did get on between the kills"
    sums = [
        json.loads((folder / w / f"checkpoints/{N_STEPS:08}/record/metadata").read_text())["checksum"]
        for w in ("whole", "killed")
    ]
    assert sums[0] == sums[1], "parameters, moments and the rest, bit for bit"


def test_adapters_on_a_quantized_base_are_killed(folder, server):
    """It ends as if it had not been."""
    (folder / "adapted.py").write_text(ADAPTED)
    settings = ("--set", "train.steps=24", "--set", "train.save_every=4")
    once, twice = (["train", "adapted.py", "--workdir", name, *settings] for name in ("once", "twice"))
    done(server, once, folder / "once.log")
    process = Forked(server, twice, folder / "twice.log")
    until(process, lambda: list((folder / "twice" / "checkpoints").glob("0*")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    done(server, twice, folder / "twice again.log")
    lines = [read_metrics(folder / name) for name in ("once", "twice")]
    assert repeated(lines[0]) == repeated(lines[1]) and lines[0][-1]["step"] == 24


def test_sigterm_saves_and_says_how_to_go_on_and_what_takes_time(folder, server, whole):
    process = Forked(server, words("asked to stop", *RARELY), folder / "stopped.log")
    until(process, lambda: size(folder / "asked to stop" / "metrics.jsonl") > 300)
    process.send_signal(signal.SIGTERM)
    err = process.wait()
    assert process.returncode == 128 + signal.SIGTERM and not err, err
    said = process.stdout().splitlines()
    last = said[-1]
    step = read_metrics(folder / "asked to stop")[-1]["step"]
    assert last.startswith(
        f"stopped and saved at step {step} of {N_STEPS}; to go on: jaxeff train tiny.py --workdir 'asked to stop'"
    )
    out = done(server, words("asked to stop", *RARELY), folder / "went on.log")
    assert f"going on from step {step} of {N_STEPS}" in out
    # A line before each slow beginning; "starting JAX" is looked at in tests/test_cli.py.
    told = ("initial weights", "compiling")
    assert tuple(line for line in said if line in told) == told
    assert "restoring" in out.splitlines() and "initial weights" not in out
    assert repeated(read_metrics(folder / "asked to stop")) == repeated(whole)


def test_second_process_is_refused(folder, server, whole, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("JAXEFF_CACHE", str(folder / "cache"))
    process = Forked(server, words("shared"), folder / "shared.log")
    until(process, lambda: size(folder / "shared" / "metrics.jsonl") > 0)
    second = main(words("shared"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert second == 2
    assert capsys.readouterr().err == f"jaxeff: error: shared is in use by another process (pid {process.pid})\n"
