"""Merging against its equations, one number at a time in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.transforms import Int8
from jaxeff.transforms.merging import dare, slerp, soup, task_arithmetic, ties
from jaxeff.transforms.plan import specs_of
from tests.closeness import assert_close


def tree(seed):
    r = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(r.standard_normal((5, 4)), jnp.float32),
        "b": jnp.asarray(r.standard_normal(3), jnp.bfloat16),
    }


BASE, TREES = tree(0), [tree(1), tree(2), tree(3)]
f64 = lambda t: jax.tree.map(lambda x: np.asarray(x, np.float64), t)


def check(found, expected):
    """In float32 to 1e-6, in bfloat16 to its own rounding."""
    assert found["w"].dtype == jnp.float32 and found["b"].dtype == jnp.bfloat16
    assert_close(found["w"], expected["w"], 1e-6)
    assert_close(found["b"], expected["b"], 4e-3)


def each(f):
    return {name: f(f64(BASE)[name], [f64(t)[name] for t in TREES]) for name in BASE}


def test_soup_and_task_arithmetic():
    check(soup(TREES), each(lambda x0, xs: sum(xs) / 3))
    check(soup(TREES, (1, 2, 5)), each(lambda x0, xs: (xs[0] + 2 * xs[1] + 5 * xs[2]) / 8))
    scales = (0.5, -0.3, 1.0)
    check(
        task_arithmetic(BASE, TREES, scales),
        each(lambda x0, xs: x0 + sum(s * (x - x0) for s, x in zip(scales, xs, strict=True))),
    )
    check(task_arithmetic(BASE, [TREES[0]], [1.0]), f64(TREES[0]))


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties(density):
    def one(x0, xs):
        taus = []
        for x in xs:
            tau = (x - x0).ravel()
            kept = np.argsort(-np.abs(tau), kind="stable")[: max(1, round(density * tau.size))]
            taus.append(np.where(np.isin(np.arange(tau.size), kept), tau, 0.0))
        merged = np.zeros(x0.size)
        for i in range(x0.size):
            sign = np.sign(sum(tau[i] for tau in taus))
            agreeing = [tau[i] for tau in taus if tau[i] and np.sign(tau[i]) == sign]
            merged[i] = np.mean(agreeing) if agreeing else 0.0
        return x0 + 0.7 * merged.reshape(x0.shape)

    check(ties(BASE, TREES, density, scale=0.7), each(one))


def test_dare_keeps_the_mean_and_drops_the_rest():
    wide = lambda x: {"w": jnp.full((400, 500), x, jnp.float32)}
    merged = dare(wide(1.0), [wide(3.0)], jax.random.key(0), drop=0.75, scales=[0.5])["w"]
    values, counts = np.unique(np.asarray(merged), return_counts=True)
    np.testing.assert_allclose(values, [1.0, 1.0 + 0.5 * 2.0 / 0.25])
    assert abs(counts[1] / merged.size - 0.25) < 5e-3
    check(dare(BASE, TREES, jax.random.key(0), drop=0.0), each(lambda x0, xs: sum(xs) / 3))
    other = dare(wide(1.0), [wide(3.0)], jax.random.key(1), drop=0.75, scales=[0.5])["w"]
    assert not np.array_equal(other, merged)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp(t):
    def one(x0, xs):
        x, y = x0, xs[0]
        angle = np.arccos(np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y))
        return (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)

    check(slerp(BASE, TREES[0], t), each(one))


def test_slerp_of_what_points_the_same_way_is_straight():
    x = {"w": jnp.asarray([[1.0, 2.0]]), "zero": jnp.zeros(3)}
    y = {"w": 3 * x["w"], "zero": jnp.ones(3)}
    assert_close(slerp(x, y, 0.25), {"w": 1.5 * x["w"], "zero": jnp.full(3, 0.25)}, 1e-6)


@pytest.mark.parametrize(
    ("merge", "says"),
    [
        (lambda: soup([]), "no trees were given"),
        (lambda: soup(TREES, (1.0,)), "weights must be as many as trees, 3, found 1"),
        (lambda: soup(TREES[:2], (1.0, -1.0)), "sum other than 0"),
        (lambda: ties(BASE, TREES, density=0.0), "density must lie in"),
        (lambda: dare(BASE, TREES, jax.random.key(0), drop=1.0), "drop must lie in"),
        (lambda: slerp(BASE, TREES[0], 1.5), "t must lie in"),
        (lambda: soup([BASE, {"w": BASE["w"]}]), r"trees 0 and 1 do not fit: b is \(3,\) and absent"),
        (lambda: soup([BASE, BASE | {"b": BASE["w"]}]), r"b is \(3,\) and \(5, 4\)"),
        (lambda: soup([_codes(BASE), _codes(TREES[0])]), "w/codes holds int8 codes, which differ between trees"),
    ],
)
def test_what_does_not_fit(merge, says):
    with pytest.raises(UserError, match=says):
        merge()


def _codes(params):
    return Int8(("w",)).plan(specs_of(params)).lift(params, jax.random.key(0))
