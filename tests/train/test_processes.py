"""Several processes train as one does, on any number of them, and end together: `jaxeff train` on each, or `jaxeff launch`."""

import concurrent.futures
import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from jaxeff.cli import main
from jaxeff.core.errors import UserError
from jaxeff.core.lifeline import LOST, gather, join
from jaxeff.core.processes import Place, _place, free_port
from jaxeff.train.loop import fit
from jaxeff.train.workdir import read_metrics
from tests.train.tiny import CONFIG, command, environment, experiment, run, stop_after

STEPS = 240
ENDED = (LOST, -signal.SIGABRT)  # JAX ends a process too, if it notices sooner that process 0 has died
SETTINGS = (f"train.steps={STEPS}", "train.eval_every=120", "train.save_every=20", "optim.lr=1e-3")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the processes work, beside the config tiny.py."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "tiny.py").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """The losses of one process."""
    return losses(fit(experiment(*SETTINGS), tmp_path_factory.mktemp("one"), prepared=prepared).lines)


def losses(lines) -> list[float]:
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def train(workdir, *settings: str) -> list[str]:
    chosen = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    return ["train", "tiny.py", "--workdir", str(workdir), *chosen]


def launched(n: int, workdir, *settings: str, restarts: int = 0) -> list[str]:
    return ["launch", "--processes", str(n), "--restarts", str(restarts), "--", *train(workdir, *settings)]


@contextlib.contextmanager
def started(place: Path, *words: str):
    """`jaxeff ...`, its stderr apart; it does not outlive the context."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command(*words), cwd=place, env=environment(place), stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def children(process: subprocess.Popen) -> list[int]:
    """In the order of their start."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def until(process: subprocess.Popen, happened, patience: float = 90.0) -> None:
    end = time.monotonic() + patience
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def said_last(place: Path, workdir: str) -> str:
    return (place / workdir / "process-1.log").read_text().splitlines()[-1]


def test_one_process_goes_on_by_two_which_are_stopped_and_go_on_by_one(place, prepared, whole):
    fit(experiment(*SETTINGS), place / "changing", prepared=prepared, stop=stop_after(7))
    with started(place, *launched(2, "changing", "mesh.data=2")) as process:
        until(process, lambda: len(read_metrics(place / "changing")) > 30)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and err == "", err
    step = int(re.search(rf"stopped and saved at step (\d+) of {STEPS}; to go on: ", out)[1])
    assert "going on from step 7 of" in out and 30 < step < STEPS
    assert f"saved at step {step} of" in said_last(place, "changing"), "both stop after the same step"
    result = fit(experiment(*SETTINGS), place / "changing", prepared=prepared)
    assert losses(result.lines) == pytest.approx(whole, abs=1e-5)


def test_launch_starts_again_after_a_kill_and_all_processes_evaluate(place, whole):
    with started(place, *launched(2, "killed", "mesh.data=2", "mesh.dcn_data=2", restarts=1)) as process:
        until(process, lambda: list((place / "killed" / "checkpoints").glob("*[0-9]")))
        before = children(process)
        subprocess.run(["kill", "-9", str(before[1])], check=True)
        until(process, lambda: len(now := children(process)) == 2 and not set(now) & set(before), patience=60.0)
        out, err = process.communicate(timeout=90)
    line = "jaxeff: process 1 of 2 was killed by SIGKILL; see killed/process-1.log; all 2 start again, from the last checkpoint"
    assert process.returncode == 0 and f"{line} (restarts left: 0)" in err.splitlines(), err
    assert re.search(r"going on from step \d+ of", out) and said_last(place, "killed").startswith(
        f"trained {STEPS} steps"
    )
    assert losses(read_metrics(place / "killed")) == pytest.approx(whole, abs=1e-5)
    done = run(place, "launch", "--processes", "2", "--", "eval", "--workdir", "killed")
    assert done.returncode == 0 and f"validation at step {STEPS}: " in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == said_last(place, "killed")


def test_four_processes_hold_a_model_that_is_spread_over_two(place, whole):
    done = run(place, *launched(4, "four", "mesh.data=2", "mesh.tensor=2", "train.steps=2", "optim.schedule=constant"))
    assert done.returncode == 0, done.stderr
    assert losses(read_metrics(place / "four"))[0] == pytest.approx(whole[0], abs=1e-5)
    assert [(place / "four" / f"process-{i}.log").exists() for i in range(5)] == [False, True, True, True, False]


@pytest.mark.parametrize("killed", [0, 1])
def test_the_other_ends_when_one_is_killed(killed, place):
    coordinator = f"127.0.0.1:{free_port()}"
    workdir = place / f"alone {killed}"
    words = [*train(workdir, "mesh.data=2"), "--coordinator", coordinator, "--processes", "2", "--process"]
    with started(place, *words, "0") as first, started(place, *words, "1") as second:
        until(first, lambda: len(read_metrics(workdir)) > 3)
        (first, second)[killed].kill()
        left = (second, first)[killed]
        _, err = left.communicate(timeout=60)
    assert f"jaxeff: error: process {killed} of 2 has ended, and this one cannot go on alone" in err, err
    assert left.returncode in ENDED, err


def refused(capsys, workdir, process: int, address: str) -> str:
    """The one line that says why a process of two does not begin."""
    words = ["--coordinator", address, "--processes", "2", "--process", str(process), "--wait", "0.3"]
    assert main([*train(workdir), *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and not Path(workdir).exists()
    return err


def test_a_coordinator_that_is_not_there_or_that_nobody_comes_to(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    address = f"127.0.0.1:{free_port()}"
    said = f"jaxeff: error: no coordinator at {address} within 0.3 s (Connection refused): process 0 must run there"
    assert refused(capsys, "nowhere", 1, address).startswith(said)
    said = "jaxeff: error: process 1 of 2 did not come within 0.3 s; --wait SECONDS waits longer\n"
    assert refused(capsys, "nowhere", 0, address) == said


ALONE = Place()
# What the environment says of a cluster, and flags; where this process stands.
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[03-04]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}
PLACES = {
    "nothing": ({}, ALONE, ALONE),
    "one of SLURM": (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, ALONE, ALONE),
    "SLURM, a device each": (SLURM | {"SLURM_STEP_NUM_NODES": "2"}, ALONE, Place("node03:61447", 4, 3, [1])),
    "SLURM, a host each": (SLURM | {"SLURM_STEP_NUM_NODES": "4"}, ALONE, Place("node03:61447", 4, 3)),
    "SLURM, and told to be alone": (SLURM, Place(processes=1), Place(processes=1)),
    "Open MPI, a host each": (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, ALONE, Place("10.96.0.1:62624", 2, 1)),
    "another port": (SLURM | {"JAX_COORDINATOR_PORT": "99"}, ALONE, Place("node03:99", 4, 3, [1])),
    "variables": (
        {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
        ALONE,
        Place("a:1", 2, 1),
    ),
    "flags before variables, variables before a cluster": (
        SLURM | {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_PROCESS_ID": "2"},
        Place("[::1]:5"),
        Place("[::1]:5", 4, 2, [1]),
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_where_a_process_stands(name, monkeypatch):
    environ, flags, expected = PLACES[name]
    for variable in [*os.environ]:
        if variable.startswith(("SLURM", "OMPI", "JAX_COORDINATOR", "JAX_NUM_PROCESSES", "JAX_PROCESS", "TPU_")):
            monkeypatch.delenv(variable)
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    assert _place(flags) == expected


def test_a_variable_that_is_no_number(monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(UserError, match="JAX_PROCESS_ID must be a whole number, found 'first'"):
        _place(ALONE)


def test_two_processes_of_one_number_are_refused():
    address = ("127.0.0.1", free_port())
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(gather, address, 3, 20.0, 1)
        others = [pool.submit(join, address, 1, 3, 20.0) for _ in range(2)]
        refused = [future.exception() for future in (first, *others)]
    assert all(
        isinstance(error, UserError) and "a process says that it is 1 of 3" in str(error) for error in refused
    ), refused


def test_a_mesh_that_leaves_a_process_out_is_refused_and_not_tried_again(place):
    done = run(place, *launched(2, "small", restarts=2))
    assert done.returncode == 2, done.stderr
    # Both are refused; the one that is first ends the other, which may not have come to say so.
    said = done.stderr + (place / "small" / "process-1.log").read_text()
    wanted = (
        r"a mesh of 1 device\(s\) takes 1 of process [01], and needs as many of each of 2 processes: set mesh.data=2"
    )
    assert re.search(wanted, said)
    assert "start again" not in done.stderr
