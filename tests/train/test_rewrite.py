"""Runs made of other runs: `jaxeff transform`, `jaxeff merge`, and several adapters over one base."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.cli import main
from jaxeff.core.errors import UserError
from jaxeff.mixers.base import Ctx
from jaxeff.train.loop import fit
from jaxeff.train.overrides import override
from jaxeff.train.rewrite import JOINS, joined, merge, transform
from jaxeff.train.trained import load_adapters, load_trained
from jaxeff.train.workdir import read_run
from jaxeff.transforms import NF4, Int4, Int8, LoRA, LowRank, Mask
from jaxeff.transforms.low_rank import by_energy
from jaxeff.transforms.multi_lora import choose
from tests.compiled import apply_model
from tests.train.tiny import CONFIG, experiment, same, without

MLP = ("blocks/.*/mlp/(up|gate|down)",)
ADAPTERS = (LoRA((("blocks/.*/mixer/(q|v)", 2),)),)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A trained run."""
    folder = tmp_path_factory.mktemp("base")
    fit(experiment(), folder / "run")
    return str(folder / "run")


@pytest.fixture(scope="module")
def adapted(base):
    """Two runs that adapted it."""
    runs = []
    for seed in (1, 2):
        runs.append(f"{base}-lora{seed}")
        fit(without(experiment("train.steps=4", f"data.seed={seed}"), transforms=ADAPTERS, base=base), runs[-1])
    return runs


class Undecoded:
    """Stands for the programs whose decoding is timed, where no test looks at the time."""

    def __init__(self, *args, **options):
        pass

    def further_tokens(self):
        return ()


@pytest.fixture
def undecoded(monkeypatch):
    monkeypatch.setattr("jaxeff.train.rewrite.Decoding", Undecoded)


@pytest.mark.parametrize("chosen, n", [
    ((LowRank(MLP, energy=0.9, method="whitened"), Int4(MLP)), 6),
    ((Mask(((MLP[0], 0.5),)), NF4(MLP)), 0),
])  # fmt: skip
def test_a_transformed_run_is_a_run(base, chosen, n, tmp_path):
    before, after, e = transform(base, chosen, tmp_path / "out", calibrate=n)
    run = load_trained(tmp_path / "out")
    assert run.step == 0 and run.experiment == e and e.base == base
    assert after.bytes == sum(x.nbytes for x in jax.tree.leaves(run.weights)) < before.bytes
    assert after.bits == 8 * after.bytes / before.parameters and before.bits == 32
    assert after.trained < before.trained == before.parameters
    assert abs(after.score - before.score) < 0.2 * before.score and after.decode > 0
    # Written further, with its frozen weights, and it goes on from what was lifted.
    result = fit(e, tmp_path / "out")
    assert result.step == e.train.steps and result.score < after.score
    assert same(result.state.frozen, e.weights.split(run.weights)[1])
    found = read_run(tmp_path / "out")["distances"]
    assert found["weights"].keys() == {f"blocks/0/mlp/{name}" for name in ("up", "gate", "down")}
    assert 0 < found["all together"] < max(weight["largest"] for weight in found["weights"].values()) < 1


def test_codes_are_chosen_by_what_goes_into_weights(base, tmp_path, undecoded):
    before, after, e = transform(base, (Int4(MLP, method="gptq"),), tmp_path / "out", calibrate=4)
    run = load_trained(tmp_path / "out")
    assert run.step == 0 and run.experiment == e
    assert after.bytes == sum(x.nbytes for x in jax.tree.leaves(run.weights)) < before.bytes
    assert abs(after.score - before.score) < 0.2 * before.score
    found = read_run(tmp_path / "out")["distances"]
    assert found["weights"].keys() == {f"blocks/0/mlp/{name}" for name in ("up", "gate", "down")}


def test_ranks_are_those_that_hold_the_energy(base, tmp_path, undecoded):
    run = load_trained(base)
    _, after, e = transform(base, (LowRank(MLP, energy=0.8),), tmp_path / "out")
    assert e.transforms == (by_energy(run.experiment.specs, run.weights, MLP, 0.8),)
    assert (
        after.parameters
        == after.trained
        == sum(x.size for x in jax.tree.leaves(load_trained(tmp_path / "out").weights))
    )


def test_merging_an_adapted_run_changes_its_form_alone(adapted, tmp_path, undecoded):
    before, after, e = merge(adapted[:1], tmp_path / "out")
    assert e.transforms == () and e.base is None and after.trained == after.parameters < before.parameters
    assert after.score == pytest.approx(before.score, rel=1e-6)
    run = load_trained(adapted[0])
    assert same(load_trained(tmp_path / "out").weights, run.experiment.weights.plan.merge(run.weights))


@pytest.mark.parametrize("by", JOINS)
def test_runs_are_joined(base, adapted, by, tmp_path, undecoded):
    needs_base = JOINS[by][0]
    join = joined(by, 2, base if needs_base else None, None, 0, None)
    _, after, _ = merge(adapted, tmp_path / "out", join)
    assert np.isfinite(after.score)
    found = load_trained(tmp_path / "out").weights
    if by in ("soup", "slerp"):
        plain = [(run := load_trained(a)).experiment.weights.plan.merge(run.weights) for a in adapted]
        q = lambda tree: tree["blocks"]["0"]["mixer"]["q"]
        np.testing.assert_allclose(q(found), (q(plain[0]) + q(plain[1])) / 2, rtol=1e-3, atol=1e-3)


def test_adapters_of_several_runs_answer_together(adapted):
    both, runs = load_adapters(adapted), [load_trained(a) for a in adapted]
    tokens = jnp.arange(2 * 5).reshape(1, 10)
    weights = choose(both.weights, jnp.arange(2))
    model = both.experiment.model
    found = apply_model(model, weights, jnp.concatenate([tokens, tokens]), None, Ctx()).y
    for i, run in enumerate(runs):
        np.testing.assert_allclose(
            found[i], apply_model(model, run.weights, tokens, None, Ctx()).y[0], rtol=1e-4, atol=1e-5
        )


def test_the_command_line(base, adapted, tmp_path, capsys):
    assert main(["transform", "--workdir", base, "--apply", "Int8()", "--out", str(tmp_path / "small")]) == 0
    shown = capsys.readouterr().out
    assert "blocks/0/mixer/v" in shown and "all together" in shown
    assert "bits per weight" in shown and "validation bits per byte" in shown and "decoding, ms a token" in shown
    assert main(["eval", "--workdir", str(tmp_path / "small")]) == 0
    assert (
        main(
            ["merge", "--workdir", adapted[0], "--workdir", adapted[1], "--by", "soup", "--out", str(tmp_path / "soup")]
        )
        == 0
    )
    capsys.readouterr()
    assert (
        main(["generate", "--workdir", adapted[0], "--workdir", adapted[1], "--prompt", "a", "--max-tokens", "3"]) == 0
    )
    assert [line[:-1] for line in capsys.readouterr().out.splitlines() if line.endswith(":")] == adapted


def test_another_base_is_refused_unless_forced(base, adapted, tmp_path):
    fit(experiment("seed=5", "train.steps=1"), tmp_path / "other")
    e = without(experiment("train.steps=1"), transforms=ADAPTERS, base=base)
    fit(e, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    stored = json.loads(path.read_text())
    stored["config"]["base"] = str(tmp_path / "other")
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"checksum \w{8} there, \w{8} now; jaxeff eval and generate take them"):
        load_trained(tmp_path / "run")
    assert load_trained(tmp_path / "run", any_base=True).step == 1


@pytest.mark.parametrize("words, message", [
    (["transform", "--apply", "Int9()"], "int8"),
    (["transform", "--apply", "Int8(rank=3)"], "Int8 has no field 'rank'"),
    (["transform", "--apply", "LowRank(method='asvd')"], "--calibrate 64"),
    (["transform", "--apply", "Int8(rules=('blocks.*mlp.up',)), LowRank()"], "the other order works"),
    (["merge", "--by", "ties"], "ties needs the run that the others learned from: --base DIR"),
    (["merge", "--base", "runs/a"], "a base and scales belong to a method that joins runs"),
    (["merge", "--by", "slerp"], "slerp is between two runs"),
    (["merge", "--by", "soup", "--scales", "a"], "expected numbers"),
])  # fmt: skip
def test_what_cannot_be_done_is_said_first(base, words, message, tmp_path, capsys):
    assert main([*words, "--workdir", base, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_base_may_be_named_beside_the_config(tmp_path, capsys):
    (tmp_path / "tiny.py").write_text(CONFIG)
    assert main(["train", str(tmp_path / "tiny.py"), "--base", "nowhere", "--workdir", str(tmp_path / "run")]) == 2
    assert "base=nowhere: nowhere holds no training run" in capsys.readouterr().err


def test_a_folder_in_use_is_refused(base):
    with pytest.raises(UserError, match="holds a run already"):
        transform(base, (Int8(),), base)
    with pytest.raises(UserError, match="jaxeff transform does it"):
        override(experiment(), ["transforms=[LowRank(energy=0.5)]"])
