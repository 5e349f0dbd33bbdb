"""Updates within the backward pass: the same numbers as updates after it, and no room for all gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.core.spec import count
from jaxeff.core.tree import paths
from jaxeff.evaluate.flops import memory
from jaxeff.mixers import GQA, MLP, Ctx
from jaxeff.models import LM, Block, Stage, Tied
from jaxeff.models.descent import Descent, descend
from jaxeff.train.checkpoint import Checkpoints
from jaxeff.train.loop import fit
from jaxeff.train.optim import schedule
from jaxeff.train.step import make_step, put, start
from tests.closeness import assert_close
from tests.models.toy_mixers import FirstValue, Shift, Told
from tests.train.tiny import bad_steps_change_nothing, batches, experiment, repeated, same, stop_after, without

NAMES = ("lomo", "adalomo")
ATTENTION = GQA(n_heads=4, n_kv_heads=2, head_dim=4)
BLOCK = Block(MLP(d_hidden=32), None)
# Two loops, blocks outside them, weights that are tied within a loop, a value and a loss that cross its border, dropout.
MIXED = LM(
    259,
    d_model=16,
    stages=(
        Stage((BLOCK, Tied("t", BLOCK)), 2),
        Stage((Block(FirstValue(), ATTENTION), Tied("t", BLOCK))),
        Stage((Block(Shift(), Told(), dropout=0.1),), 3),
    ),
    tied=False,
)


def tiny(name: str, *assignments: str):
    return experiment(f"optim.name={name}", "optim.clip=none", *assignments)


def mixed(name: str, *assignments: str):
    """With what else a step does: decay of weights, and their average."""
    return without(tiny(name, "optim.ema=0.9", "optim.weight_decay=0.1", *assignments), model=MIXED)


def run(e, data):
    """(state, metrics of each step)."""
    step = make_step(e)
    state, found = start(e, step), []
    for batch in data:
        state, out = step.step(state, put(batch, step.mesh))
        found.append(out)
    return state, found


@functools.cache
def gradient(model, objective):
    def loss(params, batch, key):
        return objective.loss(objective.sums(model, params, batch, Ctx(key=key)))

    return jax.jit(jax.value_and_grad(loss))


def after_it(e, data, update):
    """Weights after steps `update(path, weight, gradient, rate, t) -> weight` that follow the backward pass."""
    state, share = start(e, make_step(e)), schedule(e.optim)
    decay = {path: (e.optim.weight_decay or 0.0) * spec.is_matrix for path, spec in paths(e.specs).items()}
    norms = []
    for t, batch in enumerate(data, 1):
        rate = float(state.lr) * float(share(np.int32(t), state.steps))
        state = dataclasses.replace(state, step=np.int32(t - 1))
        _, grads = gradient(e.model, e.objective)(state.params, batch, state.key)
        norms.append(np.sqrt(sum(np.sum(np.square(np.asarray(g, np.float64))) for g in jax.tree.leaves(grads))))
        old, new = jax.tree.map(np.asarray, (paths(state.params), paths(grads)))
        params = {path: update(path, p, new[path], rate, t) - rate * decay[path] * p for path, p in old.items()}
        leaves = [np.asarray(p, np.float32) for p in params.values()]
        state = dataclasses.replace(state, params=jax.tree.unflatten(jax.tree.structure(state.params), leaves))
    return state.params, norms


@pytest.mark.parametrize(("make", "n"), [(tiny, 5), (mixed, 2)])
def test_lomo_is_gradient_descent(make, n):
    e = make("lomo", "optim.lr=0.1")
    data = batches(e, n)
    state, outs = run(e, data)
    expected, norms = after_it(e, data, lambda path, p, g, rate, t: p - np.float32(rate) * g)
    assert_close(state.params, expected, 1e-6)
    np.testing.assert_allclose([out["grad_norm"] for out in outs], norms, rtol=1e-5)


def adalomo(specs, eps=1e-3, b2=0.8):
    """The paper's equations in float64, one matrix after another."""
    kept = {}

    def one(spec_shape, n_in, key, p, g, rate, t):
        b = 1 - t**-b2
        shape = (int(np.prod(spec_shape[:n_in])), -1)
        square = g**2 + 1e-30
        if 0 < n_in < p.ndim:
            square = square.reshape(shape)
            r, c = kept.get(key, (0.0, 0.0))
            r, c = b * r + (1 - b) * square.mean(1), b * c + (1 - b) * square.mean(0)
            kept[key] = r, c
            v = (np.outer(r, c) / r.mean()).reshape(p.shape)
        else:
            v = kept[key] = b * kept.get(key, 0.0) + (1 - b) * square
        u = g / np.sqrt(v)
        rms = lambda x: np.sqrt(np.mean(x**2))
        return p - rate * u / max(1.0, rms(u)) * max(eps, rms(p))

    def update(path, p, g, rate, t):
        spec = specs[path]
        p, g = np.asarray(p, np.float64), np.asarray(g, np.float64)
        single = p.shape[spec.n_stacked :]
        flat = zip(p.reshape(-1, *single), g.reshape(-1, *single), strict=True)
        new = [one(single, spec.n_in, (path, i), *pair, rate, t) for i, pair in enumerate(flat)]
        return np.stack(new).reshape(p.shape)

    return update


@pytest.mark.parametrize("make", [tiny, mixed])
def test_adalomo_follows_the_paper(make):
    e = make("adalomo")
    data = batches(e, 5)
    state, _ = run(e, data)
    expected, _ = after_it(e, data, adalomo(paths(e.specs)))
    assert_close(state.params, expected, 1e-5)


def test_what_is_kept():
    """Nothing by lomo, a row and a column of each matrix by adalomo."""
    kept = {name: start(tiny(name), make_step(tiny(name))).opt.kept for name in NAMES}
    assert not jax.tree.leaves(kept["lomo"])
    q = kept["adalomo"]["blocks"]["0"]["mixer"]["q"]
    assert q["rows"].shape == (2, 16) and q["columns"].shape == (2, 16)
    assert kept["adalomo"]["norm"]["scale"].shape == (16,)


DEEP = LM(16, d_model=32, stages=(Stage((Block(MLP(d_hidden=4096), None),), 16),))


def temporary(name: str) -> int:
    """Bytes that the compiled step needs beside the state."""
    e = without(tiny(name, "data.seq_len=2", "data.batch_size=1"), model=DEEP)
    step = make_step(e)
    batch = batches(e, 1)[0]
    return memory(step.step.lower(step.abstract, put(batch, step.mesh)).compile())["temporary"]


@pytest.mark.shipped
def test_gradients_of_at_most_two_layers_are_alive():
    """Of one, in truth: beside it lomo has a copy of the layer's weights, or the squares of its gradients, and adalomo some more of
    that size, as a CPU's compiler writes down what it sums."""
    gradients = 4 * count(DEEP.specs())
    layer = gradients / 16
    activations = (
        4 * 2 * (16 * 32 + 10 * 4096)
    )  # a repeat's input for each, the MLP's numbers and their gradients for one
    found = {name: temporary(name) for name in (*NAMES, "sgd")}
    print(*(f"{name} {size / layer:.2f} layers," for name, size in found.items()))
    print(f"activations {activations / layer:.2f}")
    assert found["sgd"] >= gradients
    assert found["lomo"] <= 2 * layer + activations
    assert found["adalomo"] <= 5 * layer


@pytest.mark.parametrize("name", NAMES)
def test_loss_goes_down(name):
    e = tiny(name, "optim.lr=" + ("1" if name == "lomo" else "0.2"), "train.steps=20")
    _, outs = run(e, batches(e, 1) * 12)
    assert float(outs[-1]["loss"]) < float(outs[0]["loss"]) - 0.3


@pytest.mark.parametrize("settings", [("lomo", "optim.ema=0.9"), ("adalomo", "precision=bfloat16")])
def test_goes_on_bit_for_bit(settings, prepared, tmp_path):
    e = tiny(*settings)
    a = fit(e, tmp_path / "a", prepared=prepared)
    fit(e, tmp_path / "b", prepared=prepared, stop=stop_after(3))
    b = fit(e, tmp_path / "b", prepared=prepared)
    assert repeated(a.lines) == repeated(b.lines) and same(a.state, b.state)
    weights, _ = Checkpoints(tmp_path / "b", read_only=True).restore_weights(make_step(e).abstract.params, 8)
    assert same(weights, a.state.weights)


@pytest.mark.parametrize("name", NAMES)
def test_nonfinite_loss_changes_nothing_but_the_counters(name):
    bad_steps_change_nothing(mixed(name))


def test_nothing_before_a_layer_with_nonfinite_gradients_is_changed():
    """Of three layers the middle one's gradient is NaN, although the loss is finite."""

    def body(outer, x_BTD, layer, i):
        return x_BTD + outer * (layer["0"] + 0.0 * jnp.sqrt(layer["0"])), {}

    def rule(layers, grads, kept, told):
        return jax.tree.map(lambda w, g: w - told * g, layers, grads), jax.tree.map(lambda n: n + 1, kept)

    def loss(w, x_BTD, descent):
        return jnp.sum(descend(body, descent, jnp.float32(2), x_BTD, {"0": w}, 3)[0])

    descent = Descent({"0": jnp.zeros(3)}, jnp.float32(0.5), jnp.float32(0), rule)
    x_BTD = jnp.ones((1, 1, 1))
    for w, new, n in (([4.0, 0, 1], [4.0, 0, 0], [0, 0, 1]), ([4.0, 2, 1], [3.0, 1, 0], [1, 1, 1])):
        found, dx_BTD, given = jax.grad(loss, (0, 1, 2))(jnp.array(w), x_BTD, descent)
        np.testing.assert_array_equal(found, new)
        np.testing.assert_array_equal(given.kept["0"], n)
        assert np.isfinite(given.squares) == np.all(np.isfinite(dx_BTD)) == (w[1] > 0)
    assert float(given.squares) == 12


def test_mesh_does_not_change_the_losses():
    runs = tiny("adalomo"), tiny("adalomo", "mesh.fsdp=2", "mesh.tensor=2")
    alone, spread = ([float(out["loss"]) for out in run(e, batches(e, 4))[1]] for e in runs)
    np.testing.assert_allclose(spread, alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("optim.clip=1",), "cannot clip by global norm.*set optim.clip=none"),
        (("train.accumulate=2",), "cannot accumulate.*set train.accumulate=1"),
        (("precision=float16",), "no loss scale for float16.*set precision=bfloat16"),
        (("transforms=[LoRA(rules=('blocks/.*/mixer/q',), rank=2)]",), "trains all weights"),
        (("trainable=.*norm/scale",), "trains all weights"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_refused(name, settings, words):
    with pytest.raises(UserError, match=f"{name} .*{words}"):
        tiny(name, *settings)
