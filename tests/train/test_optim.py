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


def first_update(optim: Optim, params, grads):
    """Of a fresh optimizer; one compilation instead of one for each operation."""
    tx = optimizer(optim, SPECS)
    return jax.jit(lambda params, grads: tx.update(grads, tx.init(params), params)[0])(params, grads)


def after(optim: Optim, n: int, lr: float):
    """Squared distances from the target before and after n steps on 0.5 |p - target|^2."""
    tx, params, target = optimizer(optim, SPECS), values(0), values(1)
    state = tx.init(params)

    def distance(params):
        pairs = zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True)
        return sum(float(np.sum((np.asarray(p) - np.asarray(t)) ** 2)) for p, t in pairs)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda p, t: p - t, params, target)
        updates, state = tx.update(grads, state, params)
        return jax.tree.map(lambda p, u: p - lr * u, params, updates), state

    first = distance(params)
    for _ in range(n):
        params, state = step(params, state)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((params, state)))
    return first, distance(params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends(name):
    first, last = after(Optim(name=name, weight_decay=0.0), 10, 0.02)
    assert last < first


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_survives_zero_gradients(name):
    """Embeddings of absent tokens have none."""
    params = values()
    updates = first_update(Optim(name=name), params, jax.tree.map(jnp.zeros_like, params))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))


def test_sgd_without_momentum_is_the_gradient():
    updates = first_update(Optim(name="sgd", b1=0.0, clip=None), values(), values(1))
    assert_close(updates, values(1), 1e-7)


def test_adamw_first_step_is_the_sign_plus_decay():
    params, grads = values(), values(1)
    updates = first_update(Optim(weight_decay=0.5, clip=None), params, grads)
    mask = decay_mask(SPECS)
    expected = jax.tree.map(lambda g, p, m: jnp.sign(g) + (0.5 * p if m else 0), grads, params, mask)
    assert_close(updates, expected, 1e-5)


def test_decay_spares_norms_and_biases():
    """Although stacked ones, and biases over heads, have two dimensions and more."""
    assert decay_mask(SPECS) == {"embed": True, "layer": {"q": True, "bias": False, "scale": False}}


def test_clip_bounds_the_global_norm():
    params, grads, optim = values(), jax.tree.map(lambda x: 100 * x, values(1)), Optim(name="sgd", b1=0.0, clip=0.5)
    clipped = first_update(optim, params, grads)
    norm = np.sqrt(sum(float(np.sum(np.asarray(x) ** 2)) for x in jax.tree.leaves(clipped)))
    assert norm == pytest.approx(0.5, rel=1e-5)
    small = jax.tree.map(lambda x: 1e-3 * x, values(1))
    assert_close(first_update(optim, params, small), small, 1e-6)


def test_muon_orthogonalises_each_layer():
    """All singular values of a hidden matrix's update are near each other; the embedding's and norm's follow Adam."""
    grads = values(1)
    updates = first_update(Optim(name="muon", weight_decay=0.0, clip=None), values(), grads)
    for layer in np.asarray(updates["layer"]["q"]).reshape(2, 4, 6):
        s = np.linalg.svd(layer, compute_uv=False)
        assert s.max() / s.min() < 2
    assert (
        np.array_equal(np.sign(updates["embed"]), np.sign(grads["embed"])) and np.ptp(np.abs(updates["embed"])) < 1e-4
    )


def curve(total=100, **fields):
    share = jax.vmap(schedule(Optim(**fields)), (0, None))
    return np.asarray(jax.jit(share)(jnp.arange(1, total + 1), jnp.int32(total)))


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
        np.testing.assert_allclose(
            curve(schedule=name, warmup=0.1, final=0.2, decay=0.3), values, atol=2e-6, err_msg=name
        )


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
