"""AdaLoRA against the paper's algorithm, written again in numpy, and in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.spec import Spec, init
from jaxeff.core.weight import einsum
from jaxeff.transforms import AdaLoRA, LoRA, chain
from tests.closeness import assert_close

KEY = jax.random.key(0)
SPECS = {"one": Spec((2, 6, 5), (None,) * 3, n_stacked=1), "two": Spec((6, 2, 3), (None,) * 3)}
METHOD = AdaLoRA((("one", 4), ("two", 3)), target=1.5, begin=0.2, end=0.8, every=2, b1=0.8, b2=0.7, orthogonality=0.3)


def shaken(tree, seed):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def test_budget_importance_and_masks_over_a_run():
    plan = METHOD.plan(SPECS)
    params = shaken(plan.lift(init(SPECS, KEY), KEY), 1)
    memory, steps = plan.memory(params), 20
    smooth = {}
    for step in range(1, steps + 1):
        grads = shaken(jax.tree.map(jnp.zeros_like, params), 100 + step)
        before = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        slopes = jax.tree.map(lambda x: np.asarray(x, np.float64), grads)
        params, memory = plan.after(params, grads, memory, jnp.int32(step), jnp.int32(steps))

        scores = []
        for path in ("one", "two"):
            score = {}
            for name in ("p", "values", "q"):
                now = np.abs(getattr(before[path], name) * getattr(slopes[path], name))
                mean, spread = smooth.get((path, name), (0.0, 0.0))
                mean = 0.8 * mean + 0.2 * now
                spread = 0.7 * spread + 0.3 * np.abs(now - mean)
                smooth[path, name] = mean, spread
                score[name] = mean * spread
            if path == "one":
                scores += [score["values"] + score["p"].mean(axis=1) + score["q"].mean(axis=2)]
            else:
                scores += [score["values"] + score["p"].mean(axis=0) + score["q"].mean(axis=(1, 2))]
        left = 1 - np.clip((step / steps - 0.2) / 0.6, 0, 1)
        budget = round(4 + (11 - 4) * left**3)  # 1.5 triplets for each of three weights, rounded to even
        due = step % 2 == 0 or step >= 16
        threshold = np.sort(np.concatenate([s.ravel() for s in scores]))[::-1][budget - 1]
        for path, score in zip(("one", "two"), scores, strict=True):
            expected = np.where((score >= threshold) | (not due), before[path].values, 0.0)
            assert_close(params[path].values, expected, 1e-6)
            assert np.array_equal(params[path].p, before[path].p)
        # What was cut grows again, as gradients reach it.
        params = shaken(params, 200 + step)
    assert budget == 4


def test_the_penalty_keeps_triplets_apart():
    plan = METHOD.plan(SPECS)
    params = shaken(plan.lift(init(SPECS, KEY), KEY), 1)
    total = 0.0
    for path, n in (("one", 2), ("two", 1)):
        p, q = (np.asarray(getattr(params[path], name), np.float64) for name in "pq")
        rank = params[path].values.shape[-1]
        p, q, one = p.reshape(n, -1, rank), q.reshape(n, rank, -1), np.eye(rank)
        squares = [np.sum((a.T @ a - one) ** 2) + np.sum((b @ b.T - one) ** 2) for a, b in zip(p, q, strict=True)]
        total += np.mean(squares)
    np.testing.assert_allclose(plan.penalty(params), 0.3 * total / 2, rtol=1e-6)
    assert jax.tree.all(jax.tree.map(lambda g: np.all(np.isfinite(g)), jax.grad(plan.penalty)(params)))


def test_a_chain_hands_each_its_own_memory():
    plan = chain(AdaLoRA((("one", 4),), target=1.0), LoRA((("two", 2),))).plan(SPECS)
    params = plan.lift(init(SPECS, KEY), KEY)
    memory = plan.memory(params)
    moved, after = plan.after(params, jax.tree.map(jnp.ones_like, params), memory, jnp.int32(1), jnp.int32(10))
    assert jax.tree.structure(after) == jax.tree.structure(memory) and len(memory) == 2
    assert plan.penalty is not None and chain(LoRA((("two", 2),))).plan(SPECS).penalty is None
    assert chain(LoRA((("two", 2),))).plan(SPECS).memory(params) is None
    x = jnp.ones((3, 6))
    assert einsum("bi,ihc->bhc", x, moved["two"]).shape == (3, 2, 3)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_there_are_before_and_few_after(share):
    plan = AdaLoRA((("one", 4),), target=1.0, begin=0.3, end=0.6, every=1).plan(SPECS)
    params = shaken(plan.lift(init(SPECS, KEY), KEY), 1)
    step = jnp.int32(1 + share * 99)
    moved, _ = plan.after(params, shaken(params, 2), plan.memory(params), step, jnp.int32(100))
    assert np.sum(np.asarray(moved["one"].values) != 0) == (8 if share == 0 else 2)
