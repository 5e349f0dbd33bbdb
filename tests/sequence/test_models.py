"""Models trained on texts that are cut into slices, against the same on one device."""

import numpy as np
import pytest

from jaxeff.mixers import RWKV4, DeltaNet, RetNet
from jaxeff.models import LM, Block, Stage
from jaxeff.train.step import make_step, start
from tests.train.tiny import experiment, losses_from, without

STEPS = 10
# States that fade by one rate, that are multiplied by matrices, and that are sums relative to an exponent.
BLOCKS = Block(RetNet(n_heads=2)), Block(DeltaNet(n_heads=2, head_dim=6)), Block(RWKV4())


def tiny(*mesh):
    e = experiment("data.seq_len=16", *mesh)
    return without(e, model=LM(vocab_size=e.model.vocab_size, d_model=12, stages=(Stage(BLOCKS, 1),)))


@pytest.fixture(scope="module")
def alone():
    """(the initial state, losses) on one device."""
    e = tiny()
    begun = start(e, make_step(e))
    return begun, losses_from(begun, e, STEPS)


@pytest.mark.parametrize("mesh", [("mesh.sequence=4",), ("mesh.data=2", "mesh.sequence=2")], ids=",".join)
def test_slices_do_not_change_the_losses(alone, mesh):
    begun, expected = alone
    assert expected[-1] < expected[0]
    np.testing.assert_allclose(losses_from(begun, tiny(*mesh), STEPS), expected, rtol=1e-5)
