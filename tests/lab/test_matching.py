"""Sizes are matched from specs, or the impossible is said."""

import dataclasses

import pytest

import jaxeff
from jaxeff.core.errors import UserError
from jaxeff.lab.matching import match, solve, with_width
from jaxeff.mixers.gqa import GQA
from jaxeff.mixers.mlp import MLP
from jaxeff.models.block import Block
from jaxeff.models.lm import LM, Segment

LARGE = LM(256, 64, (Block(GQA(n_heads=4, n_kv_heads="all")),), 2)


@pytest.mark.parametrize("kv", [1, 2])
@pytest.mark.parametrize("mlp", [MLP(), MLP(gated=False, bias=True)])
def test_parameters_agree_within_one_percent(kv, mlp):
    target = jaxeff.count(LARGE.specs())
    small = dataclasses.replace(LARGE, pattern=(Block(GQA(n_heads=4, n_kv_heads=kv), mlp),))
    matched = match(small, target)
    assert abs(jaxeff.count(matched.specs()) / target - 1) <= 0.01
    assert matched.pattern[0].mlp.d_hidden % 8 == 0
    assert matched.pattern[0].mlp.gated == mlp.gated


def test_patterns_names_and_later_segments_are_widened():
    model = LM(64, 32, ("gqa", Block(GQA(), None)), 2, more=(Segment(("linear",), 1),))
    wide = with_width(model, 40)
    assert wide.pattern[0].mlp.d_hidden == wide.more[0].pattern[0].mlp.d_hidden == 40
    assert wide.pattern[1].mlp is None
    assert wide.n_layers == model.n_layers


def test_a_finer_step_is_taken_where_multiples_of_eight_are_too_coarse():
    assert solve(lambda f: 1000 * f, 13_000) == 13
    assert solve(lambda f: 1000 * f, 800_300) == 800


@pytest.mark.parametrize(
    ("size", "target", "says"),
    [
        (lambda f: 5000 + 10 * f, 4000, "without an MLP there are already 5,000"),
        (lambda f: 1000 * f, 1500, "no MLP width gives 1,500 parameters within 1.0%"),
        (lambda f: 7, 7000, "nothing can be matched"),
    ],
)
def test_the_impossible_is_said(size, target, says):
    with pytest.raises(UserError, match=says):
        solve(size, target, name="wide")


def test_a_model_without_mlp_cannot_be_matched():
    with pytest.raises(UserError, match="at least one block with an MLP"):
        match(LM(64, 32, (Block(GQA(), None),), 2), 10_000)
