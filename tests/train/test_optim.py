"""Optimizers and schedules by name, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.core.spec import Spec, fan_in, ones, stack, zeros
from jaxeff.train.optim import OPTIMIZERS, SCHEDULES, Optim, decay_mask, optimizer, schedule, settings
from tests.closeness import assert_close

SPECS = {
    "embed": Spec((6, 4), ("vocab", "embed"), fan_in),
    "layer": stack(
        {
            "q": Spec((4, 2, 3), ("embed", "heads", "head_dim"), fan_in),
            "bias": Spec((2, 3), ("heads", "head_dim"), zeros, n_in=0),
            "scale": Spec((4,), ("embed",), ones),
        },
        2,
    ),
}


def values(seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda spec: jnp.asarray(rng.normal(size=spec.shape), jnp.float32), SPECS)


def after(optim: Optim, n: int, lr: float):
    """Squared distances from the target before and after n steps on 0.5 |p - target|^2."""
    tx, params, target = optimizer(optim, SPECS), values(0), values(1)
    state = tx.init(params)

    def distance(params):
        return sum(float(jnp.sum((p - t) ** 2)) for p, t in zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True))

    first = distance(params)
    update = jax.jit(tx.update)
    for _ in range(n):
        grads = jax.tree.map(lambda p, t: p - t, params, target)
        updates, state = update(grads, state, params)
        params = jax.tree.map(lambda p, u: p - lr * u, params, updates)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((params, state)))
    return first, distance(params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends(name):
    first, last = after(Optim(name=name, weight_decay=0.0), 10, 0.02)
    assert last < first


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_survives_zero_gradients(name):
    """Embeddings of absent tokens have none."""
    tx, params = optimizer(Optim(name=name), SPECS), values()
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(updates))


def test_sgd_without_momentum_is_the_gradient():
    tx, params, grads = optimizer(Optim(name="sgd", b1=0.0, clip=None), SPECS), values(), values(1)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert_close(updates, grads, 1e-7)


def test_adamw_first_step_is_the_sign_plus_decay():
    tx, params, grads = optimizer(Optim(weight_decay=0.5, clip=None), SPECS), values(), values(1)
    updates, _ = tx.update(grads, tx.init(params), params)
    mask = decay_mask(SPECS)
    expected = jax.tree.map(lambda g, p, m: jnp.sign(g) + (0.5 * p if m else 0), grads, params, mask)
    assert_close(updates, expected, 1e-5)


def test_decay_spares_norms_and_biases():
    """Although stacked ones, and biases over heads, have two dimensions and more."""
    assert decay_mask(SPECS) == {"embed": True, "layer": {"q": True, "bias": False, "scale": False}}


def test_clip_bounds_the_global_norm():
    params, grads = values(), jax.tree.map(lambda x: 100 * x, values(1))
    tx = optimizer(Optim(name="sgd", b1=0.0, clip=0.5), SPECS)
    clipped, _ = tx.update(grads, tx.init(params), params)
    norm = np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(clipped)))
    assert norm == pytest.approx(0.5, rel=1e-5)
    small = jax.tree.map(lambda x: 1e-3 * x, values(1))
    assert_close(tx.update(small, tx.init(params), params)[0], small, 1e-6)


def test_muon_orthogonalises_each_layer():
    """All singular values of a hidden matrix's update are near each other; the embedding's and norm's follow Adam."""
    tx, params, grads = optimizer(Optim(name="muon", weight_decay=0.0, clip=None), SPECS), values(), values(1)
    updates, _ = tx.update(grads, tx.init(params), params)
    for layer in np.asarray(updates["layer"]["q"]).reshape(2, 4, 6):
        s = np.linalg.svd(layer, compute_uv=False)
        assert s.max() / s.min() < 2
    assert_close(updates["embed"], jnp.sign(grads["embed"]), 1e-4)


def curve(total=100, **fields):
    share = jax.jit(schedule(Optim(**fields)))
    return np.array([float(share(jnp.int32(step), jnp.int32(total))) for step in range(1, total + 1)])


def test_schedules():
    t = np.arange(1, 101) / 100
    rise = np.minimum(t / 0.1, 1)
    rest = np.clip((t - 0.1) / 0.9, 0, 1)
    expected = {
        "constant": rise,
        "linear": rise * (1 - 0.8 * rest),
        "cosine": rise * (0.2 + 0.8 * (1 + np.cos(np.pi * rest)) / 2),
        "wsd": rise * (1 - 0.8 * np.clip((t - 0.7) / 0.3, 0, 1)),
    }
    assert expected.keys() == SCHEDULES.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(curve(schedule=name, warmup=0.1, final=0.2, decay=0.3), values, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.8])
def test_schedules_at_the_ends(name, warmup):
    values = curve(10, schedule=name, warmup=warmup, final=0.0, decay=0.2)
    assert np.all((values >= 0) & (values <= 1)) and values.max() > 0.5
    assert values[-1] == pytest.approx(1.0 if name == "constant" else 0.0, abs=1e-6)


def test_customary_settings_give_way_to_given_ones():
    assert settings(Optim(name="lion")) == OPTIMIZERS["lion"].settings
    assert settings(Optim(name="lion", b1=0.5, weight_decay=0.0))[::3] == (0.5, 0.0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "adamv"}, "no optimizer is called 'adamv'; did you mean .*'adamw'"),
        ({"schedule": "cosin"}, "'cosine'"),
        ({"warmup": 1.5}, "Optim.warmup must lie in 0..1"),
        ({"lr": -1.0}, "Optim.lr must be at least 0"),
        ({"clip": 0.0}, "Optim.clip must be above 0"),
        ({"schedule": "wsd", "warmup": 0.9, "decay": 0.2}, "leave no room"),
    ],
)
def test_impossible_settings(fields, words):
    with pytest.raises(ValueError, match=words):
        Optim(**fields)


def test_unknown_optimizer_is_a_user_error():
    with pytest.raises(UserError):
        Optim(name="adamv")
