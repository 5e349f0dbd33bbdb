"""What a model's layers tell reaches metrics.jsonl."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.mixers import GQA, Ctx
from jaxeff.models import Block, Stage
from jaxeff.train.loop import fit
from jaxeff.train.step import make_step, start
from tests.compiled import apply_model
from tests.models.toy_mixers import Told
from tests.train.tiny import experiment


@pytest.fixture(scope="module")
def telling():
    e = experiment("train.steps=2", "train.eval_every=2", "train.save_every=2")
    stage = Stage((Block(GQA(n_heads=4, n_kv_heads=2, head_dim=4), Told()),), 2)
    return dataclasses.replace(e, model=dataclasses.replace(e.model, stages=(stage,)))


@pytest.fixture(scope="module")
def lines(telling, prepared, tmp_path_factory):
    """metrics.jsonl of a run of two steps."""
    workdir = tmp_path_factory.mktemp("told")
    result = fit(telling, workdir, prepared=prepared)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.lines
    return lines


def test_metrics_of_layers_stand_under_their_paths(telling, prepared, lines):
    """As lists of one entry a repeat; those of the first step are the initial model's on the first batch."""
    batches = prepared.train()
    batch = {name: jnp.asarray(value) for name, value in next(batches).items()}
    batches.close()
    ctx = Ctx(batch["positions"], batch["segment_ids"])
    told = apply_model(telling.model, start(telling, make_step(telling)).params, batch["tokens"], None, ctx).aux
    for line in lines:
        assert {name for name in line if "/" in name} == {"blocks/0/mlp/load", "blocks/0/mlp/loss"}
        assert np.shape(line["blocks/0/mlp/load"]) == (2, 2) and np.shape(line["blocks/0/mlp/loss"]) == (2,)
    for name in told:
        np.testing.assert_allclose(lines[0][name], told[name], rtol=1e-4, atol=1e-6, err_msg=name)
