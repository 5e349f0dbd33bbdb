"""Outputs of blocks that the stack is asked for. T time."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxeff.core.errors import UserError
from jaxeff.mixers import GQA, Ctx
from jaxeff.models import Block, Stage
from jaxeff.objectives import Causal
from tests.closeness import assert_close
from tests.models.test_stack import MLP_, OWN, TOKENS, B, D, T, V, apply_to, equal, full_batch, lm, noisy

TAPPED = lm(Stage((OWN, Block(GQA(n_heads=2), MLP_)), 3), Stage((OWN,)))


@pytest.mark.parametrize("scan", [True, False])
def test_a_tap_is_the_input_of_the_next_layer(scan):
    model, params = dataclasses.replace(TAPPED, scan=scan), noisy(TAPPED)
    out = apply_to(model, params, TOKENS, None, Ctx(taps=("blocks/[01]",)))
    assert {path: value.shape for path, value in out.aux.items()} == {
        f"blocks/{i}/output": (3, B, T, D) for i in (0, 1)
    }
    x_BTD = jnp.asarray(params["embed"][TOKENS])
    for r in range(3):
        for place in model.stack.places[0]:
            layer = jax.tree.map(lambda w, r=r: w[r], params["blocks"][str(place.i)])
            x_BTD = apply_to(place.block, layer, x_BTD).y
            assert_close(out.aux[f"blocks/{place.i}/output"][r], x_BTD, 1e-5)
    assert equal(out.y, apply_to(model, params, TOKENS).y)


def test_only_what_is_asked_for_is_tapped():
    out = jax.eval_shape(lambda p: TAPPED.apply(p, TOKENS, ctx=Ctx(taps=("blocks/2",))), noisy(TAPPED))
    assert {path: value.shape for path, value in out.aux.items()} == {"blocks/2/output": (1, B, T, D)}


def test_a_tap_is_no_metric():
    sums = Causal().sums(TAPPED, noisy(TAPPED), full_batch(V), Ctx(taps=("blocks/0",)))
    assert not any("/" in name for name in sums)


def test_a_tap_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match="tap 'block/0' matches no path; did you mean 'blocks/0'"):
        TAPPED.apply(noisy(TAPPED), TOKENS, ctx=Ctx(taps=("block/0",)))
