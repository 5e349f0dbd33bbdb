"""Training what transforms leave to train: adapters on frozen or quantized weights, beside a base that is never written."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxeff
from jaxeff.cli import main
from jaxeff.core.errors import UserError
from jaxeff.core.tree import paths
from jaxeff.evaluate.flops import memory
from jaxeff.mixers import GQA, MLP
from jaxeff.models import LM, Block, Stage
from jaxeff.train.checkpoint import Checkpoints
from jaxeff.train.experiment import Experiment
from jaxeff.train.loop import fit
from jaxeff.train.optim import OPTIMIZERS
from jaxeff.train.step import make_step, put, start
from jaxeff.train.trained import load_trained
from jaxeff.transforms import AdaLoRA, Int8, LoRA
from tests.train.tiny import alike, batches, experiment, repeated, same, stop_after, without

ADAPTERS = LoRA((("blocks/.*/mixer/(q|v)", 2), ("embed", 2)))
METHODS = {"lora": (ADAPTERS,), "both": (Int8(), ADAPTERS)}


def adapted(name, *settings, **fields):
    return without(experiment(*settings), transforms=METHODS[name], **fields)


def steps(e, n):
    step = make_step(e)
    state, losses = start(e, step), []
    for batch in batches(e, n):
        state, out = step.step(state, put(batch, step.mesh))
        losses.append(float(out["loss"]))
    return state, losses


@pytest.mark.parametrize("name", METHODS)
def test_adapters_learn_and_the_base_stays_bit_for_bit(name):
    e = adapted(name)
    before = jax.tree.map(np.asarray, start(e, make_step(e)))
    data = batches(e, 1) * 12
    step = make_step(e)
    state, losses = start(e, step), []
    for batch in data:
        state, out = step.step(state, put(batch, step.mesh))
        losses.append(float(out["loss"]))
    assert losses[-1] < losses[0] - 0.1
    assert same(state.frozen, before.frozen) and not same(state.params, before.params)
    assert all(path.endswith(("/a", "/b")) for path in paths(state.params))


@pytest.mark.parametrize("name", METHODS)
def test_the_optimizer_holds_as_many_numbers_as_train(name):
    e = adapted(name)
    state = start(e, make_step(e))
    trained = jaxeff.count(state.params)
    assert trained == sum(spec.size for path, spec in paths(e.specs).items() if e.weights.trains(path))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt) if leaf.ndim)
    assert moments == 2 * trained, "two moments of AdamW"


def test_the_base_has_the_values_of_the_plain_model_at_that_seed():
    plain, e = experiment("seed=3"), adapted("lora", "seed=3")
    expected = paths(start(plain, make_step(plain)).params)
    found = paths(start(e, make_step(e)).weights)
    for path, value in expected.items():
        assert np.array_equal(value, found[f"{path}/base" if f"{path}/base" in found else path]), path


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor"])
def test_every_kind_of_optimizer_trains_a_part(optimizer):
    e = adapted("both", f"optim.name={optimizer}")
    _, losses = steps(e, 3)
    assert np.all(np.isfinite(losses)) and optimizer in OPTIMIZERS


def test_four_devices_that_accumulate_are_one_and_its_large_batch():
    alone, losses = steps(adapted("both"), 4)
    spread, losses_4 = steps(adapted("both", "mesh.fsdp=2", "mesh.tensor=2", "train.accumulate=2"), 4)
    np.testing.assert_allclose(losses_4, losses, rtol=1e-5)
    assert alike(alone.frozen, spread.frozen)
    q = spread.frozen["blocks"]["0"]["mixer"]["q"].base.codes
    assert len(q.sharding.device_set) == 4 and not q.sharding.is_fully_replicated


def test_adalora_cuts_its_ranks_and_goes_on_to_the_bit(prepared, tmp_path):
    method = AdaLoRA((("blocks/.*/mixer/(q|v)", 4),), target=1.0, begin=0.1, end=0.5, every=1)
    e = without(experiment(), transforms=(method,))
    whole = fit(e, tmp_path / "whole", prepared=prepared)
    fit(e, tmp_path / "parts", prepared=prepared, stop=stop_after(3))
    parts = fit(e, tmp_path / "parts", prepared=prepared)
    assert same(parts.state, whole.state) and whole.state.memory is not None
    mixer = whole.state.params["blocks"]["0"]["mixer"]
    values = np.concatenate([np.asarray(mixer[name].values).ravel() for name in "qv"])
    assert np.sum(values != 0) == 4, "one triplet for each of two weights in each of two layers"


def test_trainable_alone_and_beside_adapters():
    alone = without(experiment(), trainable=(".*norm/scale",))
    found = {path for path in paths(alone.specs) if alone.weights.trains(path)}
    assert found == {"blocks/0/mixer_norm/scale", "blocks/0/mlp_norm/scale", "norm/scale"}
    beside = adapted("both", trainable=(".*norm/scale",))
    more = {path for path in paths(beside.specs) if beside.weights.trains(path)}
    assert found < more and all(path.endswith(("/a", "/b", "/scale")) for path in more)
    _, losses = steps(alone, 3)
    assert np.all(np.isfinite(losses))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            dict(transforms=(Int8(("blocks/.*/mixer/.*",)),), trainable=("blocks/.*/mixer/q",)),
            "nothing is left to train",
        ),
        (dict(transforms=(LoRA((("blocks/0/mixer/qq", 2),)),)), "did you mean 'blocks/0/mixer/q'"),
        (dict(trainable=("emb",)), "rule of trainable 'emb' matches no path"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(fields, says):
    with pytest.raises(UserError, match=says):
        without(experiment(), **fields)


def test_init_from_and_transforms_do_not_go_together():
    with pytest.raises(ValueError, match="set base instead"):
        adapted("lora", "train.init_from=x")


@pytest.fixture(scope="module")
def base(tmp_path_factory, prepared):
    """A run of the plain model."""
    folder = tmp_path_factory.mktemp("base")
    return folder, fit(experiment("seed=5"), folder, prepared=prepared)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_on_a_base_goes_on_to_the_bit_and_does_not_hold_it(name, base, prepared, tmp_path):
    folder, trained = base
    e = adapted(name, base=str(folder), seed=9)
    whole = fit(e, tmp_path / "whole", prepared=prepared)
    fit(e, tmp_path / "parts", prepared=prepared, stop=stop_after(3))
    parts = fit(e, tmp_path / "parts", prepared=prepared)
    assert repeated(parts.lines) == repeated(whole.lines) and same(parts.state, whole.state)

    plain = paths(trained.weights)
    if name == "lora":
        for path, value in paths(whole.state.frozen).items():
            assert np.array_equal(value, plain[path.removesuffix("/base")]), path
    read = Checkpoints(tmp_path / "whole", read_only=True)
    _, record = read.restore(make_step(e).abstract, 8)
    assert set(record["frozen"]) and "frozen" not in record.get("checksum", {})
    stored = [path.name for path in (tmp_path / "whole" / "checkpoints" / "00000008" / "state").iterdir()]
    assert not any("frozen" in path for path in stored)
    again = load_trained(tmp_path / "whole")
    assert same(again.weights, whole.weights)


def test_a_base_that_changed_is_refused(base, prepared, tmp_path):
    e = adapted("lora", base=str(base[0]))
    fit(e, tmp_path / "run", prepared=prepared, stop=stop_after(3))
    other = fit(experiment("seed=6"), tmp_path / "other", prepared=prepared)
    assert not same(other.weights, base[1].weights)
    moved = dataclasses.replace(e, base=str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"are not those that this run was trained on: checksum \w{8} there, \w{8} now"):
        fit(moved, tmp_path / "run", prepared=prepared)


def test_a_base_of_other_shapes_or_none_at_all(base, prepared, tmp_path):
    wide = adapted("lora", "model.stages.0.pattern.0.mlp.d_hidden=48", base=str(base[0]))
    with pytest.raises(
        UserError, match=r"base=.*other weights: blocks/0/mlp/down is \(2, 32, 16\) there, \(2, 48, 16\) here"
    ):
        fit(wide, tmp_path / "a", prepared=prepared)
    with pytest.raises(UserError, match="base=.*holds no training run"):
        fit(adapted("lora", base=str(tmp_path / "no")), tmp_path / "b", prepared=prepared)


def test_a_base_may_be_an_adapted_run_itself(base, prepared, tmp_path):
    first = adapted("lora", base=str(base[0]))
    done = fit(first, tmp_path / "first", prepared=prepared)
    second = adapted("lora", base=str(tmp_path / "first"))
    state = fit(
        dataclasses.replace(second, optim=dataclasses.replace(second.optim, lr=0.0)),
        tmp_path / "second",
        prepared=prepared,
    )
    merged = paths(first.weights.plan.merge(done.weights))
    for path, value in paths(state.state.frozen).items():
        assert np.array_equal(value, merged[path.removesuffix("/base")]), path


def test_dropout_of_adapters_is_reproducible_and_only_in_training():
    e = without(experiment(), transforms=(dataclasses.replace(ADAPTERS, dropout=0.5),))
    assert steps(e, 3)[1] == steps(e, 3)[1] != steps(adapted("lora"), 3)[1]


def test_transforms_by_name_on_the_command_line(tmp_path):
    (tmp_path / "config.py").write_text("from tests.train.tiny import experiment as config\n")
    words = ("--set", "transforms=int8,lora", "--set", "transforms.1.alpha=8", "--set", "train.steps=1")
    assert main(["train", str(tmp_path / "config.py"), "--workdir", str(tmp_path / "run"), *words]) == 0
    stored = json.loads((tmp_path / "run" / "run.json").read_text())["config"]["transforms"]
    assert [t["type"].rpartition(".")[2] for t in stored] == ["Int8", "LoRA"] and stored[1]["alpha"] == 8.0


@pytest.mark.shipped
def test_no_stack_of_dense_or_merged_weights_in_the_step():
    """24 layers; one dense stack of q alone is larger than all that the step may need beside its arguments."""
    d, layers = 256, 24
    block = Block(GQA(n_heads=4, n_kv_heads="all", head_dim=64), MLP(d_hidden=64))
    model = LM(64, d, (Stage((block,), layers),), remat="full")
    transforms = (Int8(), LoRA((("blocks/.*/mixer/(q|v)", 4),)))
    data = experiment("data.batch_size=1", "data.seq_len=16").data
    e = Experiment(model, data, transforms=transforms)
    step = make_step(e)
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, batches(e, 1)[0]))
    found = memory(step.step.lower(step.abstract, shapes).compile())
    stack = layers * d * d * 4
    assert found["temporary"] < stack, f"{found['temporary']:,} bytes, a stack has {stack:,}"

    def merged(params, frozen, batch):
        whole = e.weights.plan.merge(e.weights.whole(params, frozen))
        return e.objective.loss(e.objective.sums(model, whole, batch))

    state = step.abstract
    outside = memory(jax.jit(jax.grad(merged)).lower(state.params, state.frozen, shapes).compile())
    assert outside["temporary"] > 2 * stack, "what the test looks for shows where weights are merged outside the layers"
