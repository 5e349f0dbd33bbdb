"""Real processes that are killed and asked to stop: the losses stay those of the uninterrupted run, bit for bit."""

import json
import random
import shlex
import signal
import subprocess
import time

import pytest

from tests.train.tiny import CONFIG, command, environment, repeated, run

STEPS, KILLS = 160, 20
# Saving is nearly always under way.
SETTINGS = [f"train.steps={STEPS}", "train.save_every=2", "train.eval_every=40", "optim.lr=3e-3", "optim.ema=0.9"]


def train(folder, name: str) -> list[str]:
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["train", str(folder / "tiny.py"), "--workdir", str(folder / name), *words]


def metrics(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def begin(folder, name: str) -> subprocess.Popen:
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command(*train(folder, name)), env=environment(folder), cwd=folder, **pipes)


def next_step(process: subprocess.Popen) -> str:
    """The next line that tells of a step; '' when the process is at its end."""
    return next((line for line in iter(process.stdout.readline, "") if line.startswith("step ")), "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config, what it prepares and compiles, and its uninterrupted run in `whole`."""
    folder = tmp_path_factory.mktemp("interruption")
    (folder / "tiny.py").write_text(CONFIG)
    done = run(folder, *train(folder, "whole"))
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in metrics(folder / "whole")] == list(range(1, STEPS + 1))
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(folder, number):
    """Saves, exits with 0, says how to go on; and that is so."""
    name = f"stopped-{number.name}"
    process = begin(folder, name)
    for _ in range(5):
        assert next_step(process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    last = out.splitlines()[-1]
    assert "saved; to go on: " in last and "Traceback" not in err
    words = shlex.split(last.partition("to go on: ")[2])
    assert words == ["jaxeff", *train(folder, name)]
    at = int(last.split()[3])
    assert 5 <= at < STEPS
    assert repeated(metrics(folder / name)) == repeated(metrics(folder / "whole"))[:at]
    if number == signal.SIGTERM:
        done = run(folder, *words[1:])
        assert done.returncode == 0, done.stderr
        assert repeated(metrics(folder / name)) == repeated(metrics(folder / "whole"))


@pytest.mark.slow
def test_killed_twenty_times(folder):
    """At random moments: while starting, between and during steps, and in the middle of saving."""
    rng, workdir = random.Random(0), folder / "killed"
    half_written = finished = 0
    moments = ["starting"] * 3 + ["step"] * 8 + ["saving"] * 9
    rng.shuffle(moments)
    assert len(moments) == KILLS
    for moment in moments:
        process = begin(folder, "killed")
        if moment == "starting":
            time.sleep(rng.uniform(0.2, 3.0))
        else:
            for _ in range(rng.randint(1, 4)):
                finished += not next_step(process)
            if moment == "saving":
                # A checkpoint that is being written has a name of its own until it is whole.
                until = time.monotonic() + 5
                while not unfinished(workdir) and time.monotonic() < until and process.poll() is None:
                    time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
        process.kill()
        _, err = process.communicate()
        half_written += unfinished(workdir)
        assert "Traceback" not in err and "damaged" not in err, err
    assert half_written >= 5 and not finished, "the kills came at the wrong moments"
    done = run(folder, *train(folder, "killed"))
    assert done.returncode == 0, done.stderr
    assert repeated(metrics(workdir)) == repeated(metrics(folder / "whole"))
    assert not unfinished(workdir) and not (workdir / "damaged").exists()


def unfinished(workdir) -> bool:
    """Whether a checkpoint is half written."""
    return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))
