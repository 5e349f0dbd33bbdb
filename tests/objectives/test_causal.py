"""The objective against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.mixers.base import Ctx
from jaxeff.objectives import Causal
from jaxeff.objectives.causal import next_tokens
from tests.compiled import apply_model, values
from tests.train.tiny import batches, experiment


@pytest.fixture(scope="module")
def case():
    """Model, parameters, batch, and log-probabilities of the plain forward pass."""
    e = experiment("model.repeats=1")
    params, batch = values(e.model, jax.random.key(0)), batches(e, 1)[0]
    ctx = Ctx(jnp.asarray(batch["positions"]), jnp.asarray(batch["segment_ids"]))
    logits_BTV, _ = apply_model(e.model, params, jnp.asarray(batch["tokens"]), None, ctx)
    return e.model, params, batch, np.asarray(logits_BTV, np.float64)


def by_hand(logits_BTV, batch, z_loss=0.0, label_smoothing=0.0):
    """Position by position, in float64."""
    total = 0.0
    for b, t in zip(*np.nonzero(batch["loss_mask"])):
        logits = logits_BTV[b, t]
        log_z = np.log(np.exp(logits - logits.max()).sum()) + logits.max()
        logp, target = logits - log_z, batch["tokens"][b, t + 1]
        total += -(1 - label_smoothing) * logp[target] - label_smoothing * logp.mean() + z_loss * log_z**2
    return total


@pytest.mark.parametrize("settings", [{}, {"z_loss": 0.1}, {"label_smoothing": 0.2}])
def test_loss_by_hand(case, settings):
    model, params, batch, logits_BTV = case
    loss, metrics = jax.jit(lambda p, b: Causal(**settings).loss(model, p, b))(params, batch)
    expected, n = by_hand(logits_BTV, batch, **settings), batch["loss_mask"].sum()
    assert float(loss) == pytest.approx(expected / n, rel=1e-5)
    assert float(metrics["n_targets"]) == n
    assert loss.dtype == jnp.float32


def test_nothing_to_predict(case):
    model, params, batch, _ = case
    empty = batch | {"loss_mask": np.zeros_like(batch["loss_mask"])}
    loss, metrics = jax.jit(lambda p, b: Causal().loss(model, p, b))(params, empty)
    assert float(loss) == 0.0 and float(metrics["n_targets"]) == 0


def test_next_tokens():
    assert next_tokens(jnp.asarray([[1, 2, 3], [4, 5, 6]])).tolist() == [[2, 3, 1], [5, 6, 4]]


def test_impossible_settings():
    with pytest.raises(ValueError, match="z_loss must be at least 0"):
        Causal(z_loss=-1.0)
    with pytest.raises(ValueError, match="label_smoothing must lie in"):
        Causal(label_smoothing=1.0)
