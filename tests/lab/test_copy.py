"""An ablation of two optimizers on a synthetic task, by `jaxeff ablate`, with accuracy as its score."""

import json

import numpy as np
import pytest

from jaxeff.cli import main
from jaxeff.core.errors import UserError
from jaxeff.data import Copy

CONFIG = """
import dataclasses
import importlib.util

spec = importlib.util.spec_from_file_location("copy_ablation", "configs/ablations/copy.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)


def ablation():
    whole = module.ablation()
    train = dataclasses.replace(whole.base.train, steps=60)
    data = dataclasses.replace(whole.base.data, length=2, n_symbols=4, n_rows=256)
    base = dataclasses.replace(whole.base, train=train, data=data)
    return dataclasses.replace(whole, base=base, lrs=(0.01,), seeds=(0, 1), timing_rounds=1, contexts=(4,), decode_tokens=2)
"""


def test_two_optimizers_by_accuracy(tmp_path, capsys):
    config = tmp_path / "small.py"
    config.write_text(CONFIG)
    assert main(["ablate", str(config), "--workdir", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["score_name"], results["higher_is_better"]) == ("accuracy", True)
    assert [row["built"] for row in results["rows"]] == ["optim.name='adamw'", "optim.name='muon'"]
    # A guess is right once in four.
    assert all(row["score"]["mean"] > 0.4 for row in results["rows"])
    assert len({row["n_parameters"] for row in results["rows"]}) == 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Highest test accuracy" in page and "accuracy" in capsys.readouterr().out


def test_rows_hold_what_is_to_be_predicted():
    prepared = Copy(n_symbols=5, length=3, n_rows=8, batch_size=4).prepare()
    batch = next(iter(prepared.eval("validation")))
    assert np.array_equal(batch["tokens"][0, :3], batch["tokens"][0, 4:]) and batch["tokens"][0, 3] == 0
    assert batch["loss_mask"][0].tolist() == [0, 0, 0, 1, 1, 1, 0] and "target_bytes" not in batch
    assert prepared.vocab_size == 6 and prepared.statistics["targets"] == {"train": 24, "validation": 6, "test": 6}
    other = Copy(n_symbols=5, length=3, n_rows=8, batch_size=2, seed=3).prepare()
    assert other.fingerprint == prepared.fingerprint != Copy(task_seed=1).prepare().fingerprint


def test_impossible_tasks():
    with pytest.raises(UserError, match="data.length must be at least 1, not 0"):
        Copy(length=0)
