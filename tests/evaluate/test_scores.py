"""Bits per byte and its companions, against counting by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.evaluate.scores import evaluate
from jaxeff.mixers.base import Ctx
from jaxeff.objectives import Causal
from tests.compiled import apply_model, values
from tests.train.tiny import experiment


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Experiment, prepared data, parameters."""
    e = experiment("model.stages.0.repeats=1")
    return e, e.data.prepare(tmp_path_factory.mktemp("cache")), values(e.model, jax.random.key(1))


def by_hand(model, params, batches, token_bytes):
    """(nats, tokens, bytes), position by position."""
    nats = tokens = n_bytes = 0
    for batch in batches:
        ctx = Ctx(jnp.asarray(batch["positions"]), jnp.asarray(batch["segment_ids"]))
        logits_BTV = np.asarray(apply_model(model, params, jnp.asarray(batch["tokens"]), None, ctx)[0], np.float64)
        logp_BTV = logits_BTV - np.log(np.exp(logits_BTV).sum(-1, keepdims=True))
        for b, t in zip(*np.nonzero(batch["loss_mask"])):
            target = batch["tokens"][b, t + 1]
            nats, tokens, n_bytes = nats - logp_BTV[b, t, target], tokens + 1, n_bytes + token_bytes[target]
    return nats, tokens, n_bytes


def test_by_hand(case):
    e, prepared, params = case
    found = evaluate(Causal(), e.model, params, prepared.eval("validation"))
    nats, tokens, n_bytes = by_hand(e.model, params, prepared.eval("validation"), prepared.token_bytes)
    assert (found.sums["nll"].weight, found.sums["bits"].weight) == (tokens, n_bytes)
    assert found.scores["loss"] == pytest.approx(nats / tokens, rel=1e-6)
    assert found.scores["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found.scores["bits_per_byte"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-6)


def test_all_of_the_text_is_counted(case):
    """Every byte of the split's documents, once; and one end a document."""
    e, prepared, params = case
    found = evaluate(Causal(), e.model, params, prepared.eval("test"))
    assert found.sums["bits"].weight == prepared.statistics["bytes"]["test"]
    assert found.sums["nll"].weight == prepared.statistics["targets"]["test"]


def test_uniform_model_needs_log_v(case):
    """Zero embeddings give every token the probability 1/V: known without any model."""
    e, prepared, params = case
    zero = jax.tree.map(jnp.zeros_like, params)
    found = evaluate(Causal(), e.model, zero, prepared.eval("validation"))
    assert found.scores["perplexity"] == pytest.approx(259, rel=1e-5)
    assert found.scores["bits_per_byte"] == pytest.approx(
        math.log2(259) * found.sums["nll"].weight / found.sums["bits"].weight, rel=1e-6
    )


def test_batch_size_and_limit(case):
    e, prepared, params = case
    a = evaluate(Causal(), e.model, params, prepared.eval("validation"))
    b = evaluate(Causal(), e.model, params, prepared.eval("validation", batch_size=3))
    assert (a.sums["nll"].weight, a.sums["bits"].weight) == (b.sums["nll"].weight, b.sums["bits"].weight)
    assert a.scores["loss"] == pytest.approx(b.scores["loss"], rel=1e-6)
    first = evaluate(Causal(), e.model, params, prepared.eval("validation"), limit=1)
    assert first.sums["nll"].weight == next(iter(prepared.eval("validation")))["loss_mask"].sum() < a.sums["nll"].weight


def test_mesh_does_not_matter(case):
    e, prepared, params = case
    mesh = experiment("mesh.data=2", "mesh.fsdp=2").mesh.make()
    alone = evaluate(Causal(), e.model, params, prepared.eval("validation"))
    spread = evaluate(Causal(), e.model, jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())),
                      prepared.eval("validation"), mesh=mesh)  # fmt: skip
    assert spread.scores["loss"] == pytest.approx(alone.scores["loss"], rel=1e-6)


def test_non_finite_weights_give_non_finite_readings(case):
    e, prepared, params = case
    broken = params | {"embed": params["embed"] * jnp.float32(jnp.nan)}
    found = evaluate(Causal(), e.model, broken, prepared.eval("validation"))
    assert math.isnan(found.scores["loss"]) and math.isnan(found.scores["bits_per_byte"])


def test_no_text(case):
    e, prepared, params = case
    with pytest.raises(UserError, match="nothing to predict"):
        evaluate(Causal(), e.model, params, [])
