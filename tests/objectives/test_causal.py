"""The objective against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.mixers.base import Ctx
from jaxeff.objectives import Causal, Score, Sum
from jaxeff.objectives.base import check_score
from jaxeff.objectives.causal import next_tokens
from tests.compiled import apply_model, values
from tests.train.tiny import batches, experiment


@pytest.fixture(scope="module")
def case():
    """Model, parameters, batch, and log-probabilities of the plain forward pass."""
    e = experiment("model.stages.0.repeats=1")
    params, batch = values(e.model, jax.random.key(0)), batches(e, 1)[0]
    ctx = Ctx(jnp.asarray(batch["positions"]), jnp.asarray(batch["segment_ids"]))
    logits_BTV, *_ = apply_model(e.model, params, jnp.asarray(batch["tokens"]), None, ctx)
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
    objective = Causal(**settings)
    sums = jax.jit(lambda p, b: objective.sums(model, p, b))(params, batch)
    loss = objective.loss(sums)
    expected, n = by_hand(logits_BTV, batch, **settings), batch["loss_mask"].sum()
    assert float(loss) == pytest.approx(expected / n, rel=1e-5)
    assert {float(sum.weight) for sum in sums.values()} == {n}
    assert loss.dtype == jnp.float32


def test_nothing_to_predict(case):
    model, params, batch, _ = case
    empty = batch | {"loss_mask": np.zeros_like(batch["loss_mask"])}
    sums = jax.jit(lambda p, b: Causal().sums(model, p, b))(params, empty)
    assert float(Causal().loss(sums)) == 0.0 and float(sums["loss"].weight) == 0


def test_next_tokens():
    assert next_tokens(jnp.asarray([[1, 2, 3], [4, 5, 6]])).tolist() == [[2, 3, 1], [5, 6, 4]]


def test_impossible_settings():
    with pytest.raises(ValueError, match="z_loss must be at least 0"):
        Causal(z_loss=-1.0)
    with pytest.raises(ValueError, match="label_smoothing must lie in"):
        Causal(label_smoothing=1.0)


def test_scores_by_hand(case):
    model, params, batch, logits_BTV = case
    bytes_BT = np.random.default_rng(0).integers(0, 5, batch["tokens"].shape) * (batch["loss_mask"] > 0)
    with_bytes = batch | {"target_bytes": bytes_BT.astype(np.int32)}
    sums = jax.device_get(jax.jit(lambda p, b: Causal().sums(model, p, b))(params, with_bytes))
    scores = Causal().scores({name: Sum(*map(float, sum)) for name, sum in sums.items()})
    places = list(zip(*np.nonzero(batch["loss_mask"])))
    right = [logits_BTV[b, t].argmax() == batch["tokens"][b, t + 1] for b, t in places]
    assert scores["accuracy"] == pytest.approx(np.mean(right))
    nats = by_hand(logits_BTV, batch)
    assert scores["bits_per_byte"] == pytest.approx(nats / np.log(2) / bytes_BT.sum(), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(np.exp(nats / len(places)), rel=1e-5)


def test_a_score_that_the_data_do_not_allow(case):
    model, params, batch, _ = case
    sums = jax.eval_shape(lambda: Causal().sums(model, params, batch))
    check_score(Causal(follow="accuracy"), sums)
    with pytest.raises(
        UserError, match="follows the score 'bits_per_byte', which it cannot compute on this data; known: accuracy"
    ):
        check_score(Causal(), sums)


def test_which_way_is_better():
    assert Causal().score == Score("bits_per_byte") and Causal(follow="accuracy").score.badness(0.3) == -0.3
