"""Ablations whose models start from runs that the ablation trains first, and are scored on other data too."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.data import Grammar, SentencePiece, TextData
from jaxeff.lab.ablation import Ablation, Variant
from jaxeff.lab.results import Results
from jaxeff.lab.run import run
from jaxeff.lab.take_along import markdown
from jaxeff.train.loop import fit
from jaxeff.train.trained import load_trained
from jaxeff.transforms import LoRA, StateTuning
from tests.train.tiny import experiment, same, without


@pytest.fixture(scope="module")
def adaptation():
    e = experiment("train.steps=4")
    old = dataclasses.replace(e.data, packed=False)
    new = dataclasses.replace(old, source=Grammar(n_documents=50, seed=7))
    return Ablation(
        name="adaptation",
        base=without(e, data=new),
        variants=(
            Variant("full", {"base": "old"}),
            Variant("lora", {"base": "old", "transforms": (LoRA(rank=2),)}, lrs=(1e-2,)),
            Variant("start", {"base": "old", "transforms": (StateTuning(slots=2),)}, lrs=(1e-2, 1e-1)),
        ),
        lrs=(1e-3,),
        seeds=(0, 1),
        sweep_steps=2,
        widen=0,
        match="none",
        contexts=(8,),
        decode_tokens=2,
        timing_rounds=1,
        bases={"old": without(e, data=e.data)},
        others={"old text": old},
    )


def test_a_base_is_trained_once_and_adapted(adaptation, tmp_path):
    results = run(adaptation, tmp_path / "work")
    rows = {row.name: row for row in results.rows}
    assert rows["lora"].n_parameters < rows["full"].n_parameters
    assert set(rows["full"].others["old text"]) == {0, 1} and not rows["lora"].sweep and len(rows["start"].sweep) == 2
    assert "on old text, bits per byte" in markdown(results)
    page = (tmp_path / "work/report.html").read_text()
    assert "What is known of old text" in page and "trained once, before all else: old." in page
    assert "at each of 0.001, 0.01, 0.1, of which some models had rates of their own" in page
    base = load_trained(tmp_path / "work/runs/bases/old/run")
    lora = load_trained(tmp_path / "work/runs/lora/seed-1")
    frozen = lora.weights["blocks"]["0"]["mixer"]["q"].base
    np.testing.assert_array_equal(frozen, base.weights["blocks"]["0"]["mixer"]["q"])
    assert Results.from_json(results.to_json()) == results
    before = json.loads((tmp_path / "work/units/bases/old/run.json").read_text())
    assert run(adaptation, tmp_path / "work").rows == results.rows
    assert json.loads((tmp_path / "work/units/bases/old/run.json").read_text()) == before


def test_a_base_that_reads_otherwise_is_refused(tmp_path):
    vocabulary = SentencePiece(vocab_size=300)
    wide = experiment("train.steps=1", "model.vocab_size=300")
    old = without(wide, data=TextData(Grammar(n_documents=60), vocabulary, seq_len=32, batch_size=4))
    fit(old, tmp_path / "old")
    new = dataclasses.replace(old.data, source=Grammar(n_documents=60, seed=7))
    with pytest.raises(UserError, match="another tokenizer .* data.tokenizer may be the data"):
        fit(without(old, data=new, base=str(tmp_path / "old")), tmp_path / "new")
    alike = dataclasses.replace(new, tokenizer=old.data)
    result = fit(without(old, data=alike, base=str(tmp_path / "old")), tmp_path / "new")
    assert result.step == 1 and not same(
        jax.tree.leaves(result.weights), jax.tree.leaves(load_trained(tmp_path / "old").weights)
    )


def test_a_start_needs_a_text_a_row(tmp_path):
    e = without(experiment(), transforms=(StateTuning(slots=2),))
    with pytest.raises(UserError, match="set data.packed=false"):
        fit(e, tmp_path / "run")
    fit(without(e, data=dataclasses.replace(e.data, packed=False)), tmp_path / "run")
    with pytest.raises(
        UserError, match="data.seq_len=32 and 2 learned positions before it are longer than model.max_positions=33"
    ):
        fit(without(experiment("model.max_positions=33"), transforms=e.transforms), tmp_path / "other")
