"""GaLore against the paper's algorithm in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.spec import Spec, stack
from jaxeff.train.galore import scale_by_galore
from jaxeff.train.loop import fit
from jaxeff.train.optim import Optim, optimizer
from tests.closeness import assert_close
from tests.train.tiny import experiment, same, stop_after

SPECS = {
    "wide": stack(Spec((5, 3, 4), (None,) * 3), 2),
    "tall": Spec((3, 4, 5), (None,) * 3, n_in=2),
    "small": Spec((3, 6), (None,) * 2),
    "bias": Spec((5,), (None,), n_in=0),
    "frozen": None,
}
RANK, B1, B2, EPS = 3, 0.8, 0.9, 1e-6


def gradients(seed):
    r = np.random.default_rng(seed)
    return {name: None if s is None else r.standard_normal(s.shape).astype(np.float32) for name, s in SPECS.items()}


def test_moments_live_in_the_subspace_and_follow_the_paper():
    tx = scale_by_galore(SPECS, RANK, B1, B2, EPS, refresh=3, scale=0.5)
    state = tx.init(gradients(0))
    assert state.mu["wide"].shape == (2, 3, 12) and state.mu["tall"].shape == (12, 3)
    assert state.mu["small"].shape == (3, 6), "a shorter side of at most the rank: Adam's own"
    update = jax.jit(tx.update)
    moments, basis = {}, {}
    for t in range(1, 8):
        grads = gradients(t)
        found, state = update(grads, state)
        for name, i, o in (("wide", 5, 12), ("tall", 12, 5), ("small", 3, 6), ("bias", 1, 5)):
            g = np.asarray(grads[name], np.float64).reshape(-1, i, o)
            if name in ("wide", "tall") and (t - 1) % 3 == 0:
                u, _, v = np.linalg.svd(g)
                basis[name] = u[..., :RANK] if i < o else np.swapaxes(v, 1, 2)[..., :RANK]
            p = basis.get(name)
            inside = g if p is None else (np.swapaxes(p, 1, 2) @ g if i < o else g @ p)
            mu, nu = moments.get(name, (0.0, 0.0))
            # The sign of a singular direction is free: ours, where it differs, turns the moments' rows with it.
            if p is not None:
                ours = np.asarray(state.basis[name], np.float64).reshape(p.shape)
                sign = np.sign(np.sum(ours * p, axis=1))
                basis[name] = p = p * sign[:, None]
                inside = np.swapaxes(p, 1, 2) @ g if i < o else g @ p
            mu, nu = B1 * mu + (1 - B1) * inside, B2 * nu + (1 - B2) * inside**2
            moments[name] = mu, nu
            step = mu / (1 - B1**t) / (np.sqrt(nu / (1 - B2**t)) + EPS)
            whole = step if p is None else 0.5 * (p @ step if i < o else step @ np.swapaxes(p, 1, 2))
            assert_close(found[name].reshape(whole.shape), whole, 2e-4, name)
    assert found["frozen"] is None


def test_by_name_with_a_rank():
    specs = {"w": Spec((8, 6), (None, None))}
    params = {"w": jnp.ones((8, 6))}
    state = optimizer(Optim("galore", rank=2), specs).init(params)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert (8, 2) in shapes and (6, 2) in shapes and (8, 6) not in shapes
    with pytest.raises(ValueError, match="Optim.rank is galore's"):
        Optim("adamw", rank=2)


def test_a_run_goes_on_to_the_bit(tmp_path):
    e = experiment("optim.name=galore", "optim.rank=4", "train.steps=6")
    whole = fit(e, tmp_path / "whole")
    fit(e, tmp_path / "parts", stop=stop_after(3))
    assert same(fit(e, tmp_path / "parts").state, whole.state)
    assert whole.lines[-1]["loss"] < whole.lines[0]["loss"]
