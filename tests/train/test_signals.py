"""What ends a run from outside, and what the process says of it."""

import signal
import time

import pytest

from jaxeff.train.workdir import read_metrics
from tests.train.forked import Forked
from tests.train.test_kill import until

# Data whose preparation takes long: in Python, and in a call of C that lets no Python run.
SLOW = """
import hashlib, time
from dataclasses import dataclass, replace
from tests.train.tiny import experiment


@dataclass(frozen=True)
class Slow:
    seq_len = batch_size = 4
    seed = 0

    def prepare(self, cache=None, report=None):
        report("begun", 0, 1)
        HOW


def config():
    return replace(experiment(), data=Slow())
"""
PYTHON = "for _ in range(6000): time.sleep(0.01)"
C = 'hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)'


@pytest.mark.parametrize(("how", "number"), [
    ("python", signal.SIGINT), ("c", signal.SIGINT), ("c", signal.SIGTERM), ("python", signal.SIGHUP),
])  # fmt: skip
def test_before_the_first_step_it_ends_at_once(folder, server, how, number):
    (folder / f"{how}.py").write_text(SLOW.replace("HOW", {"python": PYTHON, "c": C}[how]))
    process = Forked(server, ["train", f"{how}.py", "--workdir", f"{how}-{number}"], folder / f"{how}-{number}.log")
    until(process, lambda: "begun" in process.stdout())
    begun = time.monotonic()
    process.send_signal(number)
    err = process.wait()
    assert time.monotonic() - begun < 20, "and not after a minute and more"
    assert process.returncode == 128 + number
    assert err == f"jaxeff: stopped by {number.name}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_later_it_is_saved_first(folder, server, number):
    workdir = f"trained-{number}"
    words = ["train", "tiny.py", "--workdir", workdir, "--set", "train.steps=100000", "--set", "train.log_every=1"]
    process = Forked(server, words, folder / f"{workdir}.log")
    until(process, lambda: len(read_metrics(folder / workdir)) > 3)
    process.send_signal(number)
    assert process.wait() == "" and process.returncode == 128 + number
    step = read_metrics(folder / workdir)[-1]["step"]
    assert (folder / workdir / "checkpoints" / f"{step:08d}").is_dir()
    assert f"stopped and saved at step {step} of 100000; to go on: jaxeff train tiny.py" in process.stdout()
