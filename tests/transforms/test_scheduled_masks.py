"""Masks that grow while the weights train (Zhu and Gupta 2017)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.core.spec import Spec
from jaxeff.train.loop import fit
from jaxeff.train.trained import load_trained
from jaxeff.transforms import LoRA, LowRank, Mask, chain
from tests.train.tiny import experiment, same, stop_after, without

KEY = jax.random.key(0)
SPECS = {"w": Spec((8, 6), (None, None)), "v": Spec((8, 6), (None, None))}
RULES = ("blocks/.*/mlp/(up|gate|down)",)


def course(mask, n=20, specs=SPECS):
    """The weights after each of n steps of a walk at random, in which masked numbers are pushed about like all others."""
    plan = mask.plan(specs)
    params = {name: jax.random.normal(jax.random.fold_in(KEY, i), (8, 6)) for i, name in enumerate(SPECS)}
    after, memory, found = jax.jit(plan.after), plan.memory(params), []
    for step in range(1, n + 1):
        pushed = {
            name: w + 0.1 * jax.random.normal(jax.random.fold_in(KEY, 100 * step + i), w.shape)
            for i, (name, w) in enumerate(params.items())
        }
        params, memory = after(pushed, None, memory, jnp.int32(step), jnp.int32(n))
        found.append((pushed, params))
    return found


def test_the_share_grows_as_published_and_zeros_stay():
    until, every, share, size = 0.5, 3, 0.75, 48
    old = np.ones(size, bool)
    for t, (pushed, params) in enumerate(course(Mask((("w", share),), until=until, every=every)), 1):
        w = np.asarray(pushed["w"], np.float64).ravel() * old
        if t <= 10 and (t % every == 0 or t == 10):
            zeros = round(size * share * (1 - (1 - t / (until * 20)) ** 3))
            old = np.zeros(size, bool)
            old[np.argsort(-np.abs(w), kind="stable")[: size - zeros]] = True
        np.testing.assert_array_equal(params["w"], (np.asarray(pushed["w"]).ravel() * old).reshape(8, 6))
        np.testing.assert_array_equal(params["v"], pushed["v"])
    assert np.mean(np.asarray(params["w"]) == 0) == share


def test_n_of_m_in_the_end():
    last = course(Mask((("w", "2:4"),), until=0.5))[-1][1]["w"]
    assert np.array_equal(np.count_nonzero(np.asarray(last).reshape(2, 4, 6), axis=1), np.full((2, 6), 2))


def test_a_run_ends_with_zeros_and_goes_on_to_the_bit(tmp_path):
    masks = (Mask(((RULES[0], 0.5),), until=0.5, every=2),)
    e = without(experiment(), transforms=masks)
    whole = fit(e, tmp_path / "whole")
    fit(e, tmp_path / "parts", stop=stop_after(5))
    parts = fit(e, tmp_path / "parts")
    assert same(whole.weights, parts.weights)
    weights = load_trained(tmp_path / "whole").weights
    for name in ("up", "gate", "down"):
        assert np.mean(np.asarray(weights["blocks"]["0"]["mlp"][name]) == 0) == 0.5


def test_narrow_factors_are_masked_each():
    plan = chain(LowRank((("w", 3),)), Mask((("w", 0.5),), until=0.1, every=1)).plan(SPECS)
    params = plan.lift({name: jax.random.normal(KEY, (8, 6)) for name in SPECS}, KEY)
    params, _ = plan.after(params, None, plan.memory(params), jnp.int32(1), jnp.int32(10))
    assert np.count_nonzero(params["w"].a) == 12 and np.count_nonzero(params["w"].b) == 9


def test_what_does_not_train_is_not_masked_in_silence(tmp_path):
    e = without(experiment(), transforms=(Mask(((RULES[0], 0.5),), until=0.5), LoRA(RULES)))
    with pytest.raises(
        UserError, match=r"Mask\(until=0.5\) masks weights while they train, and blocks/0/mlp/down does not"
    ):
        fit(e, tmp_path / "run")
    for wrong in (dict(until=1.5), dict(every=0)):
        with pytest.raises(ValueError, match="found"):
            Mask(**wrong)
