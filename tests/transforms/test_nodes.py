"""Nodes against the dense weight they stand for, in every product a layer may ask for."""

import functools

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


def drawn(spec, seed=0):
    return np.random.default_rng(seed).standard_normal(spec.shape, np.float32)


def lifted(transform, spec, w):
    return transform.plan({"w": spec}).lift({"w": w}, KEY)["w"]


def noisy(transform, spec, w):
    """A weight, transformed, with noise in the adapter too."""
    r = np.random.default_rng(3)
    noise = lambda x: np.float32(0.1) * r.standard_normal(x.shape, np.float32)
    return jax.tree.map(lambda x: x + noise(x) if x.dtype == jnp.float32 else x, lifted(transform, spec, w))


def node(transform, spec):
    """A weight of noise, and the same transformed, see `noisy`."""
    w = drawn(spec)
    return w, jax.jit(functools.partial(noisy, transform, spec))(w)


# One on another computes what each does: less of them.
PAIRS = [
    (name, product)
    for name in TRANSFORMS
    for product in PRODUCTS
    if "," not in name or product in ("layer", "tied head")
]
FRESH = ("lora", "vera", "adalora", "ia3 out", "ia3 in")


def products_of(name):
    return [product for of, product in PAIRS if of == name]


def inputs(name, seed):
    """By product: a weight, and an x."""
    found = {}
    for product in products_of(name):
        spec, shape, _ = PRODUCTS[product]
        found[product] = drawn(spec, seed), np.random.default_rng(seed + 1).standard_normal(shape, np.float32)
    return found


@functools.cache
def computed(name):
    """By product: an x, the dense weight, their product, and that of x in bfloat16; in one program."""

    def one(product, w, x):
        spec, _, eqn = PRODUCTS[product]
        weight = noisy(TRANSFORMS[name], spec, w)
        half = einsum(eqn, x.astype(jnp.bfloat16), weight) if product == "layer" else None
        return x, dense(weight, jnp.float32), einsum(eqn, x, weight), half

    return jax.jit(lambda given: {product: one(product, *values) for product, values in given.items()})(inputs(name, 0))


@pytest.mark.parametrize(("name", "product"), PAIRS)
def test_products_are_those_of_the_dense_weight(name, product):
    spec, _, eqn = PRODUCTS[product]
    x, full, found, half = computed(name)[product]
    x, full = (np.asarray(value, np.float64) for value in (x, full))
    assert full.shape == spec.shape
    assert_close(found, np.einsum(eqn, x, full), 2e-6)
    if product == "layer":
        assert half.dtype == jnp.bfloat16
        assert_close(half, np.einsum(eqn, x, full), 2e-2)


@pytest.mark.parametrize("name", FRESH)
def test_products_of_a_fresh_adapter_are_those_of_its_base_to_the_bit(name):
    given = inputs(name, 2)
    weights = {product: w for product, (w, _) in given.items()}
    lift = lambda weights: {
        product: lifted(TRANSFORMS[name], PRODUCTS[product][0], weights[product]) for product in weights
    }
    multiply = jax.jit(lambda weights: {p: einsum(PRODUCTS[p][2], given[p][1], weights[p]) for p in weights})
    # Values that the program of the products does not know: it could leave out zeros.
    ours, theirs = multiply(jax.jit(lift)(weights)), multiply(weights)
    assert set(ours) == set(PRODUCTS)
    for product in ours:
        assert np.array_equal(ours[product], theirs[product]), product


@pytest.mark.parametrize("name", TRANSFORMS)
def test_rows_of_an_embedding(name):
    spec, ids = Spec((9, 6), (None, None)), np.array([[0, 8, 3], [3, 3, 1]])

    @jax.jit
    def rows_and_all(w):
        weight = noisy(TRANSFORMS[name], spec, w)
        return take(weight, jnp.asarray(ids), jnp.float32), dense(weight, jnp.float32)

    rows, full = rows_and_all(drawn(spec))
    assert_close(rows, np.asarray(full)[ids], 1e-6)


def test_gradients_of_an_adapter_are_those_of_its_dense_form():
    _, weight = node(TRANSFORMS["lora"], PRODUCTS["heads in"][0])
    x = jax.random.normal(KEY, PRODUCTS["heads in"][1])
    loss = lambda f: lambda w: jnp.sum(jnp.sin(f(w)))
    ours = jax.grad(loss(lambda w: einsum("bthc,hcd->btd", x, w)))
    theirs = jax.grad(loss(lambda w: einsum("bthc,hcd->btd", x, dense(w, jnp.float32))))
    assert_close(*jax.jit(lambda w: (ours(w), theirs(w)))(weight), 1e-5)


def test_the_scale_of_an_update_is_alpha_over_rank():
    w, weight = node(LoRA((("w", 2),), alpha=3.0), Spec((6, 5), (None, None)))
    base = np.asarray(weight.base, np.float64)
    update = 1.5 * np.asarray(weight.a, np.float64) @ np.asarray(weight.b, np.float64)
    assert_close(dense(weight, jnp.float32), base + update, 1e-6)


def test_codes_are_the_nearest_and_channels_keep_their_own_scale():
    spec = Spec((2, 64, 3, 4), (None,) * 4, n_in=1, n_stacked=1)
    w = drawn(spec)
    w[0, :, 1, 2] = 0.0
    weight = jax.jit(functools.partial(lifted, Int8(("w",)), spec))(w)
    assert weight.codes.dtype == jnp.int8 and weight.scale.shape == (2, 1, 3, 4)
    assert float(weight.scale[0, 0, 1, 2]) == 1.0, "a channel of zeros"
    error = np.abs(np.asarray(dense(weight, jnp.float32)) - w)
    assert np.all(error <= 0.5001 * np.asarray(weight.scale)) and error.max() > 0.4 * np.asarray(weight.scale).min()
    assert np.abs(np.asarray(weight.codes)).max() == 127


def test_dropout_acts_on_the_adapter_alone_and_needs_a_key():
    spec = Spec((64, 5), (None, None))
    plan = LoRA((("w", 4),), dropout=0.5).plan({"w": spec})
    _, weight = node(LoRA((("w", 4),), dropout=0.5), spec)
    x = jax.random.normal(KEY, (300, 64))
    product = jax.jit(lambda w: einsum("bd,df->bf", x, w))
    seeded = jax.jit(lambda key: product(plan.seeded({"w": weight}, key)["w"]))
    quiet, loud = (np.asarray(y, np.float64) for y in (product(weight), seeded(KEY)))
    base = np.asarray(x, np.float64) @ np.asarray(weight.base, np.float64)
    assert np.array_equal(loud, seeded(KEY))
    assert not np.array_equal(loud, seeded(jax.random.key(1)))
    # Half of 64 inputs, doubled: the update differs by its own size; its mean over many rows and keys does not.
    assert 0.3 < np.std(loud - quiet) / np.std(quiet - base) < 3
