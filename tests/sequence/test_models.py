"""Models trained on texts that are cut into slices, against the same on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.mixers import RWKV4, DeltaNet, RetNet
from jaxeff.models import LM, Block, Stage
from jaxeff.train.step import make_step, put, start
from tests.train.tiny import batches, experiment, without

STEPS = 10
# States that fade by one rate, that are multiplied by matrices, and that are sums relative to an exponent.
BLOCKS = Block(RetNet(n_heads=2)), Block(DeltaNet(n_heads=2, head_dim=6)), Block(RWKV4())


def tiny(*mesh):
    e = experiment("data.seq_len=16", *mesh)
    return without(e, model=LM(vocab_size=e.model.vocab_size, d_model=12, stages=(Stage(BLOCKS, 1),)))


def losses(e, begun):
    """Of some steps from a state that is copied to where the experiment's mesh has it."""
    step = make_step(e)
    state = jax.tree.map(lambda x, laid: jax.device_put(jnp.copy(x), laid.sharding), begun, step.abstract)
    found = []
    for batch in batches(e, STEPS):
        state, out = step.step(state, put(batch, step.mesh))
        found.append(float(out["loss"]))
    return found


@pytest.fixture(scope="module")
def alone():
    """(the initial state, losses) on one device."""
    e = tiny()
    begun = start(e, make_step(e))
    return begun, losses(e, begun)


@pytest.mark.parametrize("mesh", [("mesh.sequence=4",), ("mesh.data=2", "mesh.sequence=2")], ids=",".join)
def test_slices_do_not_change_the_losses(alone, mesh):
    begun, expected = alone
    assert expected[-1] < expected[0]
    np.testing.assert_allclose(losses(tiny(*mesh), begun), expected, rtol=1e-5)
