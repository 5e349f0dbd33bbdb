"""One step: what it computes, whatever the micro-batches, the number format and the mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.mixers.base import Ctx
from jaxeff.train.step import make_step, put, start
from tests.closeness import assert_close, relative_rms
from tests.compiled import apply_model
from tests.train.tiny import alike, bad_steps_change_nothing, batches, experiment, same


def losses(e, n, data=None):
    """Losses of n steps over one list of batches, and the last state."""
    step = make_step(e)
    state, found = start(e, step), []
    for batch in (data or batches(e, n))[:n]:
        state, out = step.step(state, put(batch, step.mesh))
        found.append(out)
    return [float(out["loss"]) for out in found], state, found


def test_step_lowers_loss():
    e = experiment()
    found, state, outs = losses(e, 12, batches(e, 1) * 12)
    assert found[-1] < found[0] - 0.3
    assert int(state.step) == 12 and int(state.skipped) == 0
    n = batches(e, 1)[0]["loss_mask"].sum()
    assert float(outs[0]["n_targets"]) == n


def test_first_loss_is_the_mean_over_targets():
    """Against logits of the plain forward pass."""
    e = experiment()
    batch = batches(e, 1)[0]
    found, _, _ = losses(e, 1, [batch])
    params = start(e, make_step(e)).params
    ctx = Ctx(jnp.asarray(batch["positions"]), jnp.asarray(batch["segment_ids"]))
    logits_BTV, *_ = apply_model(e.model, params, jnp.asarray(batch["tokens"]), None, ctx)
    logp_BTV = np.asarray(jax.nn.log_softmax(logits_BTV))
    nll = -sum(
        float(logp_BTV[b, t, batch["tokens"][b, t + 1]]) for b, t in zip(*np.nonzero(batch["loss_mask"]), strict=True)
    )
    assert found[0] == pytest.approx(nll / batch["loss_mask"].sum(), rel=1e-5)


def test_accumulation_equals_large_batch():
    """Micro-batches have different numbers of targets: a mean of means would be another number."""
    one, many = experiment(), experiment("train.accumulate=2")
    a, state_a, outs_a = losses(one, 3)
    b, state_b, outs_b = losses(many, 3)
    np.testing.assert_allclose(a, b, rtol=2e-6)
    np.testing.assert_allclose([o["grad_norm"] for o in outs_a], [o["grad_norm"] for o in outs_b], rtol=1e-5)
    assert_close(state_b.params, state_a.params, 1e-4)


def test_learning_rate_seed_and_length_share_one_compiled_step():
    """They are values of the state; everything else is another step."""
    a, b = experiment(), experiment("optim.lr=0.5", "seed=7", "train.steps=99", "train.log_every=3")
    assert make_step(a) is make_step(b)
    assert make_step(a) is not make_step(experiment("optim.clip=2"))
    states = start(a, make_step(a)), start(b, make_step(b))
    assert not same(states[0].params, states[1].params)
    assert [float(s.lr) for s in states] == [np.float32(0.01), 0.5] and [int(s.steps) for s in states] == [8, 99]


def test_lr_follows_schedule():
    """Cosine to a tenth, counted from the first step; the warm-up is less than one step."""
    _, _, outs = losses(experiment(), 8)
    done = (np.arange(1, 9) / 8 - 0.05) / 0.95
    expected = 0.01 * (0.1 + 0.9 * (1 + np.cos(np.pi * done)) / 2)
    np.testing.assert_allclose([float(o["lr"]) for o in outs], expected, rtol=1e-5)


def test_bfloat16_keeps_float32_masters():
    e = experiment("precision=bfloat16")
    found, state, _ = losses(e, 6, batches(e, 1) * 6)
    exact, _, _ = losses(experiment(), 6, batches(e, 1) * 6)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert found != exact
    np.testing.assert_allclose(found, exact, rtol=0.02)


def test_float16_scales_its_loss():
    """The scale starts too high for this learning problem to stay finite forever, and a bad step halves it."""
    e = experiment("precision=float16")
    data = batches(e, 1) * 6
    found, state, _ = losses(e, 6, data)
    exact, _, _ = losses(experiment(), 6, data)
    np.testing.assert_allclose(found, exact, rtol=0.02)
    step = make_step(e)
    high = dataclasses.replace(state.scale, scale=jnp.float32(2.0**120))
    before = jax.tree.map(np.asarray, state.params)
    state, out = step.step(dataclasses.replace(state, scale=high), put(data[0], step.mesh))
    assert float(state.scale.scale) == 2.0**119
    assert int(out["skipped"]) == 1 and same(state.params, before)


def test_nonfinite_step_changes_nothing_but_the_counters():
    bad_steps_change_nothing(experiment("optim.ema=0.9"))


def test_moving_average():
    e = experiment("optim.ema=0.95")
    step = make_step(e)
    state = start(e, step)
    average = jax.tree.map(np.asarray, state.params)
    assert same(state.ema, state.params)
    for t, batch in enumerate(batches(e, 3)):
        state, _ = step.step(state, put(batch, step.mesh))
        d = min(0.95, (1 + t) / (10 + t))
        average = jax.tree.map(lambda a, p, d=d: d * a + (1 - d) * np.asarray(p), average, state.params)
    assert_close(state.ema, average, 1e-6)
    assert same(state.weights, state.ema)
    assert relative_rms(state.ema["embed"], state.params["embed"]) > 1e-4


MESHES = [("mesh.data=2", "mesh.tensor=2"), ("mesh.fsdp=2", "mesh.tensor=2")]


@pytest.mark.shipped
@pytest.mark.parametrize("mesh", MESHES, ids=lambda m: ",".join(m).replace("mesh.", ""))
def test_mesh_does_not_change_the_losses(mesh):
    e = experiment("train.steps=20")
    alone, state, _ = losses(e, 20)
    spread, state_4, _ = losses(experiment("train.steps=20", *mesh), 20)
    np.testing.assert_allclose(spread, alone, rtol=1e-5)
    q = state_4.params["blocks"]["0"]["mixer"]["q"]
    assert len(q.sharding.device_set) == 4 and not q.sharding.is_fully_replicated


@pytest.mark.shipped
def test_mesh_with_accumulation():
    e = experiment()
    alone, _, _ = losses(e, 4)
    spread, _, _ = losses(experiment("mesh.fsdp=2", "train.accumulate=2"), 4)
    np.testing.assert_allclose(spread, alone, rtol=1e-5)


@pytest.mark.shipped
def test_initial_state_is_the_same_on_any_mesh():
    a, b = experiment("optim.ema=0.9"), experiment("optim.ema=0.9", *MESHES[1])
    assert alike(start(a, make_step(a)), start(b, make_step(b)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ("mesh.data=3",),
            "batch_size=4 is not divisible by train.accumulate=1 x mesh data=3 x fsdp=1; the nearest that is: 3",
        ),
        (("train.accumulate=3",), "train.accumulate=3"),
        (("train.accumulate=4", "mesh.fsdp=2"), "the nearest that is: 8"),
        (("mesh.data=2", "mesh.tensor=4"), "needs 8 devices; there are 4"),
    ],
)
def test_sizes_that_do_not_fit(settings, words):
    with pytest.raises(UserError, match=words):
        make_step(experiment(*settings))
