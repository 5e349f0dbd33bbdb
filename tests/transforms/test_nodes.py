"""Nodes against the dense weight they stand for, in every product a layer may ask for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.spec import Spec
from jaxeff.core.weight import dense, einsum, take
from jaxeff.transforms import IA3, NF4, AdaLoRA, DoRA, Int4, Int8, LoRA, LowRank, Mask, VeRA, chain
from tests.closeness import assert_close

KEY = jax.random.key(0)
# A weight, the shape of x, and the equation: a plain layer, heads out, heads in, a tied head, experts, too few rows for speed.
PRODUCTS = {
    "layer": (Spec((6, 5), (None, None)), (70, 6), "bd,df->bf"),
    "heads out": (Spec((6, 2, 3), (None,) * 3), (2, 40, 6), "btd,dhc->bthc"),
    "heads in": (Spec((2, 3, 6), (None,) * 3, n_in=2), (2, 40, 2, 3), "bthc,hcd->btd"),
    "tied head": (Spec((7, 6), (None, None)), (2, 3, 6), "btd,vd->btv"),
    "experts": (Spec((4, 6, 5), (None,) * 3, n_stacked=1), (4, 3, 6), "etd,edf->etf"),
    "one row": (Spec((6, 5), (None, None)), (1, 6), "bd,df->bf"),
}
TRANSFORMS = {
    "lora": LoRA((("w", 2),), alpha=3.0),
    "dora": DoRA((("w", 2),), alpha=3.0),
    "vera": VeRA((("w", 9),)),
    "adalora": AdaLoRA((("w", 2),), target=1.0),
    "ia3 out": IA3((("w", "out"),)),
    "ia3 in": IA3((("w", "in"),)),
    "low rank": LowRank((("w", 2),)),
    "mask": Mask((("w", 0.4),)),
    "int8": Int8(("w",)),
    "int4": Int4(("w",), group=4),
    "nf4": NF4(("w",), block=4),
    "nf4 single": NF4(("w",), block=4, double=False),
    "int8, lora": chain(Int8(("w",)), LoRA((("w", 2),), alpha=3.0)),
    "nf4, dora": chain(NF4(("w",)), DoRA((("w", 2),))),
    "everything": chain(LowRank((("w", 3),)), Mask((("w", 0.3),)), Int4(("w",)), DoRA((("w", 2),))),
}


def node(transform, spec):
    """A weight of noise, transformed, with noise in the adapter too."""
    r = np.random.default_rng(0)
    w = jnp.asarray(r.standard_normal(spec.shape), jnp.float32)
    found = transform.plan({"w": spec}).lift({"w": w}, KEY)["w"]
    return w, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(KEY, x.shape) if x.dtype == jnp.float32 else x, found)


# One on another computes what each does: less of them.
PAIRS = [
    (name, product)
    for name in TRANSFORMS
    for product in PRODUCTS
    if "," not in name or product in ("layer", "tied head")
]


@pytest.mark.parametrize(("name", "product"), PAIRS)
def test_products_are_those_of_the_dense_weight(name, product):
    spec, shape, eqn = PRODUCTS[product]
    _, weight = node(TRANSFORMS[name], spec)
    x = jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)
    full = np.asarray(dense(weight, jnp.float32), np.float64)
    assert full.shape == spec.shape
    assert_close(einsum(eqn, x, weight), np.einsum(eqn, np.asarray(x, np.float64), full), 2e-6)
    if product == "layer":
        half = einsum(eqn, x.astype(jnp.bfloat16), weight)
        assert half.dtype == jnp.bfloat16
        assert_close(half, np.einsum(eqn, np.asarray(x, np.float64), full), 2e-2)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", ["lora", "vera", "adalora", "ia3 out", "ia3 in"])
def test_products_of_a_fresh_adapter_are_those_of_its_base_to_the_bit(name, product):
    spec, shape, eqn = PRODUCTS[product]
    w, x = (jnp.asarray(np.random.default_rng(2).standard_normal(s), jnp.float32) for s in (spec.shape, shape))
    fresh = TRANSFORMS[name].plan({"w": spec}).lift({"w": w}, KEY)["w"]
    assert np.array_equal(einsum(eqn, x, fresh), einsum(eqn, x, w))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_rows_of_an_embedding(name):
    _, weight = node(TRANSFORMS[name], Spec((9, 6), (None, None)))
    ids = jnp.array([[0, 8, 3], [3, 3, 1]])
    assert_close(take(weight, ids, jnp.float32), np.asarray(dense(weight, jnp.float32))[ids], 1e-6)


def test_gradients_of_an_adapter_are_those_of_its_dense_form():
    _, weight = node(TRANSFORMS["lora"], PRODUCTS["heads in"][0])
    x = jax.random.normal(KEY, PRODUCTS["heads in"][1])
    loss = lambda f: lambda w: jnp.sum(jnp.sin(f(w)))
    ours = jax.grad(loss(lambda w: einsum("bthc,hcd->btd", x, w)))(weight)
    theirs = jax.grad(loss(lambda w: einsum("bthc,hcd->btd", x, dense(w, jnp.float32))))(weight)
    assert_close(ours, theirs, 1e-5)


def test_the_scale_of_an_update_is_alpha_over_rank():
    w, weight = node(LoRA((("w", 2),), alpha=3.0), Spec((6, 5), (None, None)))
    base = np.asarray(weight.base, np.float64)
    update = 1.5 * np.asarray(weight.a, np.float64) @ np.asarray(weight.b, np.float64)
    assert_close(dense(weight, jnp.float32), base + update, 1e-6)


def test_codes_are_the_nearest_and_channels_keep_their_own_scale():
    spec = Spec((2, 64, 3, 4), (None,) * 4, n_in=1, n_stacked=1)
    w, weight = node(Int8(("w",)), spec)
    weight = Int8(("w",)).plan({"w": spec}).lift({"w": w.at[0, :, 1, 2].set(0.0)}, KEY)["w"]
    assert weight.codes.dtype == jnp.int8 and weight.scale.shape == (2, 1, 3, 4)
    assert float(weight.scale[0, 0, 1, 2]) == 1.0, "a channel of zeros"
    error = np.abs(np.asarray(dense(weight, jnp.float32)) - np.asarray(w.at[0, :, 1, 2].set(0.0)))
    assert np.all(error <= 0.5001 * np.asarray(weight.scale)) and error.max() > 0.4 * np.asarray(weight.scale).min()
    assert np.abs(np.asarray(weight.codes)).max() == 127


def test_dropout_acts_on_the_adapter_alone_and_needs_a_key():
    spec = Spec((64, 5), (None, None))
    plan = LoRA((("w", 4),), dropout=0.5).plan({"w": spec})
    _, weight = node(LoRA((("w", 4),), dropout=0.5), spec)
    x = jax.random.normal(KEY, (300, 64))
    product = lambda w: np.asarray(einsum("bd,df->bf", x, w), np.float64)
    quiet, loud = product(weight), product(plan.seeded({"w": weight}, KEY)["w"])
    base = np.asarray(x, np.float64) @ np.asarray(weight.base, np.float64)
    assert np.array_equal(loud, product(plan.seeded({"w": weight}, KEY)["w"]))
    assert not np.array_equal(loud, product(plan.seeded({"w": weight}, jax.random.key(1))["w"]))
    # Half of 64 inputs, doubled: the update differs by its own size; its mean over many rows and keys does not.
    assert 0.3 < np.std(loud - quiet) / np.std(quiet - base) < 3
