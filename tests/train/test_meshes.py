"""Each axis of the mesh, and products of them, on eight virtual devices: the losses are those of one device."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.documented import ROOT

ONE = ["data=2", "fsdp=2", "tensor=2", "sequence=2"]
TWO = [
    "data=2 fsdp=2",
    "data=2 tensor=2",
    "data=2 sequence=4",
    "fsdp=4 tensor=2",
    "fsdp=2 sequence=2",
    "tensor=2 sequence=4",
]
THREE = ["data=2 fsdp=2 tensor=2", "fsdp=2 tensor=2 sequence=2"]
# Sums in another order; the losses of the tenth step have passed ten of them.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def losses():
    """{mesh: losses of ten steps}, "" for one device."""
    command = [sys.executable, "-m", "tests.train.on_eight", "", *ONE, *TWO, *THREE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", [*ONE, *TWO, *THREE])
def test_a_mesh_does_not_change_the_losses(losses, mesh):
    assert losses[""][-1] < losses[""][0]
    np.testing.assert_allclose(losses[mesh], losses[""], rtol=ROUNDING)
