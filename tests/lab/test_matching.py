"""Sizes are matched from specs, or the impossible is said."""

import pytest

import jaxeff
from jaxeff.core.errors import UserError
from jaxeff.lab.matching import match, solve
from jaxeff.mixers.gqa import GQA
from jaxeff.mixers.mlp import MLP
from jaxeff.models import LM, Block, Stage, Tied
from jaxeff.train.experiment import Experiment


def experiment(*pattern, repeats=2, vocab_size=256, d_model=64):
    return Experiment(LM(vocab_size, d_model, (Stage(pattern, repeats),)))


TARGET = jaxeff.count(experiment(Block(GQA(n_heads=4, n_kv_heads="all"))).specs)


@pytest.mark.parametrize("kv", [1, 2])
@pytest.mark.parametrize("mlp", [MLP(), MLP(gated=False, biases=("up", "down"))])
def test_parameters_agree_within_one_percent(kv, mlp):
    matched, width = match(experiment(Block(GQA(n_heads=4, n_kv_heads=kv), mlp)), TARGET)
    assert abs(jaxeff.count(matched.specs) / TARGET - 1) <= 0.01
    assert matched.model.stages[0].pattern[0].mlp.d_hidden == width and width % 8 == 0
    assert matched.model.stages[0].pattern[0].mlp.gated == mlp.gated


def test_every_mlp_of_every_stage_is_widened_and_tied_ones_too():
    stages = (Stage(("gqa", Block(GQA(), None)), 2), Stage((Tied("t", "linear"),), 1))
    matched, width = match(Experiment(LM(64, 32, stages)), 40_000)
    first, second = matched.model.stages
    assert first.pattern[0].mlp.d_hidden == second.pattern[0].block.mlp.d_hidden == width
    assert first.pattern[1].mlp is None


@pytest.mark.parametrize("vary", ["model.stages.*mixer.head_dim", "model.stages.0.repeats", "model.d_model"])
def test_any_integer_field_can_make_up_for_the_size(vary):
    """Models without an MLP have other sizes to vary."""
    plain = experiment(Block(GQA(n_heads=4, n_kv_heads="all"), None), vocab_size=32)
    matched, n = match(plain, 300_000, 0.05, vary)
    assert abs(jaxeff.count(matched.specs) / 300_000 - 1) <= 0.05 and n > 1


def test_a_finer_step_is_taken_where_multiples_of_eight_are_too_coarse():
    assert solve(lambda f: 1000 * f, 13_000) == 13
    assert solve(lambda f: 1000 * f, 800_300) == 800


@pytest.mark.parametrize(
    ("size", "target", "says"),
    [
        (lambda f: 5000 + 10 * f, 4000, "no n gives 4,000 parameters within 1.0%: n=1 gives 5,010"),
        (lambda f: 1000 * f, 1500, "no n gives 1,500 parameters within 1.0%"),
        (lambda f: 7, 7000, "nothing can be matched"),
    ],
)
def test_the_impossible_is_said(size, target, says):
    with pytest.raises(UserError, match=says):
        solve(size, target, name="wide")


def test_a_field_that_is_not_there():
    with pytest.raises(
        UserError, match=r"varies 'model.stages.\*mlp.d_hidden', which no integer field of the model is called"
    ):
        match(experiment(Block(GQA(), None)), 10_000)
