"""Each method against its equation in float64."""

import dataclasses
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.core.spec import Spec, count, init
from jaxeff.core.target import lowering_for
from jaxeff.core.weight import dense, einsum
from jaxeff.transforms import NF4, Adapter, DoRA, Int4, LoRA, LowRank, Mask, VeRA
from jaxeff.transforms.few_bits import pack, unpack
from jaxeff.transforms.low_rank import by_budget, by_energy
from jaxeff.transforms.nf4 import LEVELS, level, nearest_level
from jaxeff.transforms.rank import singular
from tests.closeness import assert_close, relative_rms

KEY = jax.random.key(0)


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def lifted(method, w, n_in=1, n_stacked=0):
    spec = Spec(w.shape, (None,) * w.ndim, n_in=n_in, n_stacked=n_stacked)
    return method.plan({"w": spec}).lift({"w": w}, KEY)["w"]


def shaken(node):
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(KEY, x.shape) if x.dtype == jnp.float32 else x, node)


def f64(x):
    return np.asarray(x, np.float64)


def moved(node):
    """A DoRAWeight as training leaves it: all but the base and its norm has changed."""
    lora = dataclasses.replace(node.lora, a=shaken(node.lora.a), b=noise(*node.lora.b.shape, seed=2))
    return dataclasses.replace(node, lora=lora, magnitude=node.magnitude + 0.3 * noise(*node.norm.shape, seed=3))


def test_dora_is_the_direction_times_the_magnitude():
    w, x = noise(3, 4, 5), noise(7, 3, 4, seed=1)
    node = lifted(DoRA((("w", 2),), alpha=3.0), w, n_in=2)
    assert_close(node.magnitude, np.sqrt(np.sum(f64(w) ** 2, axis=(0, 1))), 1e-6)
    node = moved(node)
    direction = f64(w) + 1.5 * np.einsum("hcr,ro->hco", f64(node.lora.a), f64(node.lora.b))
    expected = f64(node.magnitude) * direction / np.sqrt(np.sum(direction**2, axis=(0, 1)))
    assert_close(dense(node, jnp.float32), expected, 1e-6)
    assert_close(einsum("bhc,hco->bo", x, node), np.einsum("bhc,hco->bo", f64(x), expected), 1e-6)


def test_doras_norm_is_a_constant_of_the_gradient():
    w, x = noise(6, 5), noise(7, 6, seed=1)
    node = moved(lifted(DoRA((("w", 2),)), w))
    direction = lambda b: w + node.lora.scale * node.lora.a @ b
    factor = node.magnitude / jnp.linalg.norm(direction(node.lora.b), axis=0)

    def ours(b):
        lora = dataclasses.replace(node.lora, b=b)
        return jnp.sum(jnp.sin(einsum("bi,io->bo", x, dataclasses.replace(node, lora=lora))))

    def fixed(b):
        return jnp.sum(jnp.sin(x @ (direction(b) * factor[None])))

    def free(b):
        return jnp.sum(jnp.sin(x @ (direction(b) * (node.magnitude / jnp.linalg.norm(direction(b), axis=0))[None])))

    assert_close(jax.grad(ours)(node.lora.b), jax.grad(fixed)(node.lora.b), 1e-5)
    assert relative_rms(jax.grad(free)(node.lora.b), jax.grad(fixed)(node.lora.b)) > 1e-2


@pytest.mark.parametrize("eqn", ["bi,ihc->bhc", "bhc,ihc->bi"])
def test_doras_magnitude_has_the_gradient_of_its_equation(eqn):
    w, x = noise(6, 5, 3), noise(7, *((6,) if eqn.startswith("bi") else (5, 3)), seed=1)
    node = moved(lifted(DoRA((("w", 2),)), w))

    def loss(product):
        return lambda m: jnp.sum(jnp.sin(product(dataclasses.replace(node, magnitude=m))))

    ours = loss(lambda node: einsum(eqn, x, node))
    expected = loss(lambda node: jnp.einsum(eqn, x, dense(node, jnp.float32)))
    m, dm = node.magnitude, noise(5, 3, seed=4)
    assert_close(jax.grad(ours)(m), jax.grad(expected)(m), 1e-5)
    assert_close(jax.jvp(ours, (m,), (dm,))[1], jax.jvp(expected, (m,), (dm,))[1], 1e-5)
    second = lambda f: jax.grad(lambda m: jnp.sum(jax.grad(f)(m) * dm))(m)
    assert_close(second(ours), second(expected), 1e-5)
    still = jax.grad(ours)(m.at[0, 0].set(0.0))
    assert still[0, 0] == 0 and np.all(np.isfinite(still))


def test_vera_draws_the_same_factors_for_every_weight_of_a_shape():
    spec = Spec((3, 8, 6), (None,) * 3, n_stacked=1)
    specs = {"one": spec, "two": spec, "wide": Spec((8, 7), (None, None))}
    plan = VeRA(((".*", 4),)).plan(specs)
    params = plan.lift(init(specs, KEY), jax.random.key(9))
    one, two = params["one"], params["two"]
    assert np.array_equal(one.a, two.a) and np.array_equal(one.b[0], two.b[2])
    assert np.array_equal(one.a[0], params["wide"].a) and np.all(one.inner == np.float32(0.1))
    assert sum(plan.trains(path) for path in ("one/inner", "one/outer", "one/a", "one/b", "one/base")) == 2
    node, x = shaken(one), noise(3, 5, 8)
    update = np.einsum("lbi,lir,lr,lro,lo->lbo", *map(f64, (x, node.a, node.inner, node.b, node.outer)))
    expected = np.einsum("lbi,lio->lbo", f64(x), f64(node.base)) + update
    assert_close(einsum("lbi,lio->lbo", x, node), expected, 1e-6)


@pytest.mark.parametrize("form", ["sequential", "parallel"])
def test_an_adapter_adds_its_bottleneck_to_the_product(form):
    w, x = noise(2, 3, 6), noise(4, 5, 2, 3, seed=1)
    node = lifted(Adapter((("w", 4),), activation="relu", form=form, scale=0.5), w, n_in=2)
    product = np.einsum("bthc,hcd->btd", f64(x), f64(w))
    assert np.array_equal(einsum("bthc,hcd->btd", x, node), einsum("bthc,hcd->btd", x, w)), "nothing at the start"
    node = shaken(node)
    product = np.einsum("bthc,hcd->btd", f64(x), f64(node.base))
    read = product if form == "sequential" else f64(x).reshape(4, 5, 6)
    inner = np.maximum(read @ f64(node.down).reshape(6, 4), 0)
    assert_close(einsum("bthc,hcd->btd", x, node), product + 0.5 * inner @ f64(node.up), 1e-6)
    with pytest.raises(UserError, match="can neither be merged"):
        dense(node, jnp.float32)
    with pytest.raises(UserError, match="'btd,hcd->bthc' is none"):
        einsum("btd,hcd->bthc", noise(4, 5, 6), node)


def test_truncation_is_the_best_of_its_rank():
    w = noise(3, 20, 4, 5)
    node = lifted(LowRank((("w", 6),)), w, n_stacked=1)
    s = np.linalg.svd(f64(w).reshape(3, 20, 20), compute_uv=False)
    left = np.sum((f64(dense(node, jnp.float32)) - f64(w)).reshape(3, -1) ** 2, axis=1)
    np.testing.assert_allclose(left, np.sum(s[:, 6:] ** 2, axis=1), rtol=1e-5)
    norms = [np.sum(f64(x).reshape(3, -1) ** 2, axis=1) for x in (node.a, node.b)]
    np.testing.assert_allclose(*norms, rtol=1e-5)


def test_a_random_sketch_loses_little_more_than_the_best():
    u, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((300, 200)))
    w = (u * (1.0 / (1 + np.arange(200)))) @ np.linalg.qr(np.random.default_rng(1).standard_normal((200, 200)))[0]
    left = lambda u, s, v: np.sum((w - f64(u * s[None] @ v)) ** 2)
    best = np.sum(np.linalg.svd(w, compute_uv=False)[16:] ** 2)
    assert left(*singular(jnp.asarray(w, jnp.float32), 16)) < 1.02 * best


def test_ranks_by_energy_and_by_budget():
    flat, steep = noise(16, 16), noise(16, 2) @ noise(2, 16, seed=1)
    params = {"flat": flat, "steep": steep, "three": noise(3, 16, 16, seed=2)}
    specs = {"flat": Spec((16, 16), (None,) * 2), "steep": Spec((16, 16), (None,) * 2)}
    specs["three"] = Spec((3, 16, 16), (None,) * 3, n_stacked=1)
    found = dict(by_energy(specs, params, (".*",), 0.9).rules)
    assert found["steep"] <= 2 and 6 < found["flat"] < 16
    s = np.linalg.svd(f64(flat), compute_uv=False) ** 2
    assert s[: found["flat"]].sum() >= 0.9 * s.sum() > s[: found["flat"] - 1].sum()

    method = by_budget(specs, params, (".*",), 0.5)
    lifted_specs = method.plan(specs).specs
    numbers = {path: count(lifted_specs[path]) for path in specs}
    assert 0.45 * 5 * 256 < sum(numbers.values()) <= 0.5 * 5 * 256
    assert dict(method.rules)["steep"] == 2, "further ranks of it keep nothing"
    with pytest.raises(ValueError, match="share=0.01 is less than rank 1 of every weight takes, 0.1250"):
        by_budget(specs, params, (".*",), 0.01)
    with pytest.raises(ValueError, match="energy must lie in"):
        by_energy(specs, params, (".*",), 1.5)
    with pytest.raises(UserError, match="LowRank: flat has numbers that are not finite"):
        by_energy(specs, params | {"flat": flat.at[0, 0].set(jnp.nan)}, ("flat",), 0.5)


def test_factors_that_are_no_smaller_are_told_of(caplog):
    LowRank((("w", 9),)).plan({"w": Spec((16, 16), (None, None))})
    assert "factors of rank 9 are no smaller than w, 16 x 16; below rank 8 they are" in caplog.text


def test_a_mask_keeps_the_largest():
    w = noise(2, 8, 6)
    node = lifted(Mask((("w", 0.25),)), w, n_stacked=1)
    for layer, kept in zip(np.abs(w), node.kept):
        assert np.sum(kept) == 36 and layer[kept].min() >= layer[~kept].max()
    node = lifted(Mask((("w", "2:4"),)), w, n_stacked=1)
    groups = np.asarray(node.kept).reshape(2, 2, 4, 6)
    assert np.all(groups.sum(axis=2) == 2)
    size = np.abs(np.asarray(w)).reshape(2, 2, 4, 6)
    assert np.all(np.where(groups, size, np.inf).min(axis=2) >= np.where(groups, 0, size).max(axis=2))
    gradient = jax.grad(lambda n: jnp.sum(jnp.sin(dense(n, jnp.float32))), allow_int=True)(node)
    assert np.all((np.asarray(gradient.base) != 0) == np.asarray(node.kept))
    assert np.sum(lifted(Mask((("w", 0.5),)), jnp.ones((4, 4))).kept) == 8, "among equals too"


def test_two_codes_a_byte():
    codes = np.random.default_rng(0).integers(0, 16, (3, 8, 5)).astype(np.uint8)
    packed = pack(codes, 1)
    assert packed.shape == (3, 4, 5) and packed.dtype == jnp.uint8
    assert packed[0, 0, 0] == 16 * codes[0, 0, 0] + codes[0, 1, 0], "the first one in the high half"
    assert np.array_equal(unpack(packed, 1), codes)


def test_levels_of_nf4():
    x = np.linspace(-1.2, 1.2, 4001)
    nearest = np.abs(x[:, None] - np.array(LEVELS)).min(axis=1)
    assert_close(np.abs(x - np.array(LEVELS)[np.asarray(nearest_level(jnp.asarray(x, jnp.float32)))]), nearest, 1e-6)
    assert np.array_equal(np.array(LEVELS)[np.asarray(nearest_level(jnp.asarray(LEVELS)))], LEVELS)
    for platform in ("cpu", "tpu"):
        with lowering_for(platform):
            assert np.array_equal(level(jnp.arange(16, dtype=jnp.uint8)), np.float32(LEVELS))
    # Quantiles of a normal distribution, from both ends to zero: evenly spaced in probability, scaled to reach 1.
    end = 0.9677083
    above = [NormalDist().inv_cdf(p) for p in np.linspace(end, 0.5, 9)[:-1]]
    below = [-NormalDist().inv_cdf(p) for p in np.linspace(end, 0.5, 8)[:-1]]
    quantiles = np.array(sorted([*below, 0.0, *above])) / above[0]
    np.testing.assert_allclose(LEVELS, quantiles, atol=2e-6)


@pytest.mark.parametrize("double", [True, False])
def test_nf4_against_its_equation(double):
    w = noise(2, 130, 3, 64) * jnp.exp(noise(1, 1, 3, 64, seed=1))
    node = lifted(NF4(("w",), double=double), w, n_stacked=1)
    assert node.codes.shape == (2, 3, 32, 3, 64) and node.codes.dtype == jnp.uint8
    padded = np.zeros((2, 192, 3, 64))
    padded[:, :130] = f64(w)
    groups = padded.reshape(2, 3, 64, 3, 64)
    absmax = np.abs(groups).max(axis=2, keepdims=True)
    if double:
        least, largest = (f(absmax, axis=(3, 4), keepdims=True) for f in (np.min, np.max))
        unit = (largest - least) / 255
        assert np.all(np.abs(f64(node.scale) - absmax) <= 0.501 * unit)
        assert node.absmax.dtype == jnp.uint8
    else:
        assert_close(node.scale, absmax, 1e-7)
    scale = f64(node.scale)
    levels = np.array(LEVELS)
    nearest = levels[np.abs((groups / scale)[..., None] - levels).argmin(axis=-1)] * scale
    assert_close(dense(node, jnp.float32), nearest.reshape(2, 192, 3, 64)[:, :130], 1e-6)
    assert 0.05 < relative_rms(dense(node, jnp.float32), w) < 0.11, "four bits of normal numbers"


def test_bytes_a_weight():
    for method, most in ((NF4(("w",)), 0.52), (NF4(("w",), double=False), 0.5625), (Int4(("w",)), 0.5625)):
        node = lifted(method, noise(1024, 4, 64).astype(jnp.bfloat16))
        assert sum(x.nbytes for x in jax.tree.leaves(node)) <= most * 1024 * 256


def test_int4_against_its_equation():
    w = noise(100, 6)
    node = lifted(Int4(("w",), group=32), w)
    assert node.codes.shape == (4, 16, 6) and node.step.dtype == jnp.bfloat16
    padded = np.zeros((128, 6))
    padded[:100] = f64(w)
    groups = padded.reshape(4, 32, 6)
    low, step = f64(node.low), f64(node.step)
    assert_close(low, groups.min(axis=1, keepdims=True), 1e-7)
    assert_close(step, (groups.max(axis=1, keepdims=True) - low) / 15, 4e-3)
    expected = low + step * np.clip(np.round((groups - low) / step), 0, 15)
    assert_close(dense(node, jnp.float32), expected.reshape(128, 6)[:100], 1e-6)
    flat = lifted(Int4(("w",), group=4), jnp.full((8, 3), 0.75))
    assert np.array_equal(dense(flat, jnp.float32), np.full((8, 3), 0.75, np.float32)), "equal numbers stay"


def test_lora_plus_moves_b_faster():
    specs = {"w": Spec((6, 5), (None, None)), "v": Spec((6, 5), (None, None))}
    plan = LoRA((("w|v", 2),), lr_ratio=16.0).plan(specs)
    assert [plan.rate(path) for path in ("w/b", "w/a", "w/base", "v/b")] == [16.0, 1.0, 1.0, 16.0]
    assert DoRA((("w", 2),), lr_ratio=4.0).plan(specs).rate("w/lora/b") == 4.0


@pytest.mark.parametrize(("start", "of"), [("pissa", "svd"), ("olora", "qr")])
def test_starts_from_the_base(start, of):
    w = noise(12, 10)
    node = lifted(LoRA((("w", 3),), alpha=6.0, init=start), w)
    ab = 2.0 * f64(node.a) @ f64(node.b)
    if of == "svd":
        u, s, v = np.linalg.svd(f64(w))
        expected = (u[:, :3] * s[:3]) @ v[:3]
    else:
        q, r = np.linalg.qr(f64(w))
        expected = q[:, :3] @ r[:3]
    assert_close(ab, expected, 1e-5)
    assert_close(node.base, f64(w) - expected, 1e-5)


def test_a_rank_stabilised_update_is_scaled_by_the_root():
    assert lifted(LoRA((("w", 4),), alpha=6.0, rank_stabilised=True), noise(12, 10)).scale == 3.0
    assert lifted(LoRA((("w", 4),), alpha=6.0), noise(12, 10)).scale == 1.5


def test_what_decays_is_the_product():
    specs = {"w": Spec((2, 6, 5), (None, None, None), n_stacked=1), "v": Spec((6, 5), (None, None))}
    params = {name: jax.random.normal(jax.random.key(i), spec.shape) for i, (name, spec) in enumerate(specs.items())}
    plan = LowRank((("w", 3), ("v", 2)), decay=0.3).plan(specs)
    lifted = plan.lift(params, jax.random.key(1))
    whole = sum(np.sum(np.square(np.asarray(w, np.float64))) for w in plan.merge(lifted).values())
    np.testing.assert_allclose(plan.penalty(lifted), 0.15 * whole, rtol=1e-5)
    gradient = jax.grad(plan.penalty)(lifted)["v"].a
    a, b = (np.asarray(x, np.float64) for x in (lifted["v"].a, lifted["v"].b))
    np.testing.assert_allclose(gradient, 0.3 * a @ b @ b.T, rtol=1e-4, atol=1e-6)
    assert LowRank((("w", 3),)).plan(specs).penalty is None
