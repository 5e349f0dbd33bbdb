"""How far rewritten weights lie from what they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.spec import Spec
from jaxeff.core.weight import dense
from jaxeff.transforms import NF4, Adapter, Int4, Int8, LoRA, LowRank, Mask, chain, distances
from jaxeff.transforms.distance import Distance, overall, table

KEY = jax.random.key(0)
SPECS = {
    "layers": Spec((3, 8, 2, 4), (None,) * 4, n_stacked=1),
    "one": Spec((8, 6), (None, None)),
    "scale": Spec((6,), (None,), n_in=0),
}
VALUES = {
    path: np.random.default_rng(i).standard_normal(s.shape).astype(np.float32)
    for i, (path, s) in enumerate(SPECS.items())
}
RULES = ("layers", "one")


def lifted(transform, specs=SPECS, params=VALUES):
    return transform.plan(specs).lift(jax.tree.map(jnp.asarray, params), KEY)


@pytest.mark.parametrize("transform", [
    LowRank(RULES, rank=2), Mask((("layers|one", 0.5),)), Int8(RULES), Int4(RULES), NF4(RULES),
    chain(LowRank(RULES, rank=2), Int8(RULES)), chain(NF4(RULES), Adapter((("one", 2),))),
], ids=["low rank", "mask", "int8", "int4", "nf4", "low rank, int8", "nf4, bottleneck"])  # fmt: skip
def test_each_weight_that_has_become_another_one(transform):
    after = lifted(transform)
    found = distances(SPECS, VALUES, after)
    assert set(found) == set(RULES)
    base = after["one"].base if hasattr(after["one"], "down") else after["one"]
    for path, node, n in (("layers", after["layers"], 3), ("one", base, 1)):
        w, new = (np.asarray(x, np.float64).reshape(n, -1) for x in (VALUES[path], dense(node, jnp.float32)))
        expected = np.linalg.norm(new - w, axis=1) / np.linalg.norm(w, axis=1)
        assert found[path].largest == pytest.approx(expected.max(), rel=1e-5)
        assert found[path].mean == pytest.approx(expected.mean(), rel=1e-5)
        assert found[path].lost / found[path].size == pytest.approx(np.sum((new - w) ** 2) / np.sum(w**2), rel=1e-5)


def test_low_rank_loses_the_singular_values_that_it_leaves_out():
    found = distances(SPECS, VALUES, lifted(LowRank(("one",), rank=2)))
    s = np.linalg.svd(VALUES["one"], compute_uv=False)
    assert (
        found["one"].largest == found["one"].mean == pytest.approx(np.sqrt(np.sum(s[2:] ** 2) / np.sum(s**2)), rel=1e-5)
    )


def test_what_has_not_changed_is_left_out():
    assert distances(SPECS, VALUES, VALUES) == distances(SPECS, VALUES, lifted(LoRA(RULES))) == {}
    assert distances(SPECS, VALUES, lifted(Adapter(("one",)))) == {}
    assert distances(SPECS, VALUES, VALUES | {"start": np.ones(3, np.float32)}) == {}
    # An adapter on codes: nothing more is lost than by the codes, and from there on nothing.
    both, coded = lifted(chain(Int8(RULES), LoRA(RULES))), lifted(Int8(RULES))
    assert distances(SPECS, VALUES, both) == distances(SPECS, VALUES, coded)
    assert distances(Int8(RULES).plan(SPECS).specs, coded, both) == {}


def test_a_weight_of_zeros_has_lost_nothing():
    none = jax.tree.map(np.zeros_like, VALUES)
    assert distances(SPECS, none, lifted(LowRank(RULES, rank=2), params=none)) == {}


def test_another_shape_is_no_rewriting():
    with pytest.raises(ValueError, match=r"one has shape \(2, 2\), and had \(8, 6\) before"):
        distances(SPECS, VALUES, VALUES | {"one": np.ones((2, 2), np.float32)})


def test_the_farthest_come_first():
    found = {
        "near": Distance(0.1, 0.1, 1.0, 100.0),
        "far": Distance(0.5, 0.3, 3.0, 12.0),
        "next": Distance(0.2, 0.2, 0.0, 0.0),
    }
    assert overall(found) == pytest.approx(np.sqrt(4 / 112)) and overall({}) == 0
    words = [line.split() for line in table(found, 2).splitlines()]
    assert words[1:] == [
        ["far", "5.00e-01", "3.00e-01"], ["next", "2.00e-01", "2.00e-01"], ["and", "1", "more"], ["all", "together", "1.89e-01"],
    ]  # fmt: skip
