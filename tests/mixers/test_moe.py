"""The mixture of experts against loops in float64 and against its dense form; capacity, losses, devices, transforms, training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

import jaxeff
from jaxeff.core.errors import UserError
from jaxeff.core.sharding import RULES
from jaxeff.core.target import lowering_for
from jaxeff.evaluate.flops import flops
from jaxeff.mixers import GQA, MLP, Ctx, MoE
from jaxeff.mixers.mlp import ACTIVATIONS
from jaxeff.mixers.moe import moe_reference
from jaxeff.models import LM, Block, Stage
from jaxeff.objectives.causal import Causal
from jaxeff.transforms import Int8, LoRA, Mask
from tests.closeness import assert_close
from tests.compiled import apply_mixer

B, T, D, X = 2, 21, 12, 4
SMALL = MoE(D, d_hidden=8, n_experts=X)
LAYERS = {
    "mixtral": SMALL,
    "switch": MoE(D, 8, X, top_k=1, activation="relu", gated=False, normalise=False),
    "deepseek": MoE(D, 8, 6, top_k=3, n_shared=2, score="sigmoid", z_loss=0.01),
    "all": MoE(D, 8, 3, top_k=3),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def normal(shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@functools.cache
def params_of(layer):
    return jax.tree.map(np.asarray, jaxeff.init(layer.specs(), jax.random.key(0)))


def apply(layer, x_BTD, segment_ids=None, params=None, **ctx):
    return apply_mixer(layer, params or params_of(layer), x_BTD, None, Ctx(segment_ids=segment_ids, **ctx))


def mlp(layer, p, x):
    """One expert on one token."""
    act = lambda h: np.asarray(ACTIVATIONS[layer.activation](h.astype(np.float32)), np.float64)
    return (act(x @ p["gate"]) * (x @ p["up"]) if layer.gated else act(x @ p["up"])) @ p["down"]


def by_hand(layer, params, x_BTD, valid_BT):
    """(y_BTD, loss, load, share of choices without room) of the equations at the head of mixers/moe.py, token by token."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    y, X, K = np.zeros(x_BTD.shape), layer.n_experts, layer.top_k
    load, mass, z, n, dropped = np.zeros(X), np.zeros(X), 0.0, valid_BT.sum(), 0
    C = np.inf if layer.capacity is None else np.ceil(layer.capacity * K * x_BTD.shape[1] / X)
    for b in range(len(x_BTD)):
        held = np.zeros(X)
        for t, x in enumerate(x_BTD[b].astype(np.float64)):
            logit = x @ p["router"]
            s = np.exp(logit - logit.max()) / np.exp(logit - logit.max()).sum()
            s = 1 / (1 + np.exp(-logit)) if layer.score == "sigmoid" else s
            chosen = np.argsort(-s)[:K]
            for i in chosen:
                held[i] += valid_BT[b, t]
                if held[i] > C:
                    dropped += valid_BT[b, t]
                    continue
                g = s[i] / s[chosen].sum() if layer.normalise else s[i]
                y[b, t] += g * mlp(layer, {k: p[k][i] for k in ("gate", "up", "down") if k in p}, x)
            y[b, t] += mlp(layer, p["shared"], x) if layer.n_shared else 0
            if valid_BT[b, t]:
                load[chosen] += 1 / (K * n)
                mass += s / s.sum() / n
                z += np.log(np.exp(logit).sum()) ** 2 / n
    return y, layer.balance * X * (load * mass).sum() + layer.z_loss * z, load, dropped / (K * n)


def padded():
    """Segment ids of two texts and padding on either side."""
    ids = np.ones((B, T), np.int32)
    ids[0, :4], ids[1, 9:], ids[1, 15:] = 0, 2, 0
    return ids


@every_layer
def test_output_losses_and_load_by_hand(name):
    layer, x_BTD, ids = LAYERS[name], normal((B, T, D)), padded()
    out = apply(layer, x_BTD, ids)
    y_BTD, loss, load, _ = by_hand(layer, params_of(layer), x_BTD, ids != 0)
    assert_close((out.y, out.aux["loss"], out.aux["load"]), (y_BTD, loss, load))
    assert set(out.aux) == {"loss", "load"} and np.isclose(np.sum(out.aux["load"]), 1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradients(run, layer, params, x_BTD):
    """Of a function of all outputs, for parameters and input."""
    return jax.grad(lambda params, x_BTD: jnp.sum(jnp.sin(run(layer, params, x_BTD))), (0, 1))(params, x_BTD)


def plain(layer, params, x_BTD):
    return layer.apply(params, x_BTD).y


@every_layer
def test_gradients_are_those_of_the_dense_form(name):
    layer, x_BTD = LAYERS[name], normal((B, T, D))
    assert_close(
        gradients(plain, layer, params_of(layer), x_BTD), gradients(moe_reference, layer, params_of(layer), x_BTD)
    )


def test_a_capacity_that_all_tokens_fit_in_changes_nothing():
    roomy, x_BTD = dataclasses.replace(SMALL, capacity=X / SMALL.top_k), normal((B, T, D))
    found, expected = apply(roomy, x_BTD, padded()), apply(SMALL, x_BTD, padded())
    keep = (padded() != 0)[..., None].astype(np.float32)
    assert_close((found.y * keep, found.aux["load"]), (expected.y * keep, expected.aux["load"]))
    assert found.aux["dropped"] == 0
    arguments = params_of(SMALL), x_BTD
    assert_close(gradients(plain, roomy, *arguments), gradients(plain, SMALL, *arguments))


@pytest.mark.parametrize("capacity", [0.5, 1.0])
def test_capacity_drops_the_last_that_come_and_padding_takes_no_room(capacity):
    layer, x_BTD, ids = dataclasses.replace(SMALL, capacity=capacity), normal((B, T, D)), padded()
    out = apply(layer, x_BTD, ids)
    y_BTD, _, _, dropped = by_hand(layer, params_of(layer), x_BTD, ids != 0)
    keep = (ids != 0)[..., None].astype(np.float32)
    assert dropped > 0.03
    assert_close((out.y * keep, out.aux["dropped"]), (y_BTD * keep, dropped))
    assert apply(layer, x_BTD[:, :1]).aux["dropped"] == 0, "a decode step has room"


def test_the_order_of_experts_is_of_no_consequence():
    params, x_BTD, order = params_of(SMALL), normal((B, T, D)), np.array([2, 0, 3, 1])
    other = {name: w[order] for name, w in params.items()} | {"router": params["router"][:, order]}
    out, expected = apply(SMALL, x_BTD, params=other), apply(SMALL, x_BTD)
    assert_close(
        (out.y, out.aux["loss"], out.aux["load"]), (expected.y, expected.aux["loss"], expected.aux["load"][order])
    )


def test_balance_is_one_where_the_router_is_indifferent_and_grows_with_preference():
    layer = MoE(D, 8, X, top_k=1, balance=0.25, z_loss=0.5)
    params = params_of(layer) | {"router": np.zeros((D, X), np.float32)}
    out = apply(layer, normal((B, T, D)), params=params)
    assert_close(out.aux["loss"], np.float32(0.25 + 0.5 * np.log(X) ** 2))
    # All tokens alike, and one expert preferred by e^8 to 1 in each.
    params["router"][:, 2] = 8 / D
    assert_close(apply(layer, np.ones((B, T, D), np.float32), params=params).aux["load"], np.eye(X)[2])
    only = dataclasses.replace(layer, z_loss=0.0)
    assert apply(only, np.ones((B, T, D), np.float32), params=params).aux["loss"] > 0.25 * 3.9


def test_padding_alone_counts_as_nothing():
    out = apply(SMALL, normal((B, T, D)), np.zeros((B, T), np.int32))
    assert out.aux["loss"] == 0 and np.all(np.asarray(out.aux["load"]) == 0) and np.all(np.isfinite(out.y))


@pytest.mark.parametrize("capacity", [None, 1.0])
@pytest.mark.parametrize("mesh", [{"tensor": 4}, {"data": 2, "sequence": 2}, {"fsdp": 2, "tensor": 2}])
def test_experts_and_tokens_over_four_devices_are_those_of_one(mesh, capacity):
    layer, x_BTD, ids = (
        dataclasses.replace(SMALL, capacity=capacity, n_shared=1),
        normal((4, 22, D)),
        np.ones((4, 22), np.int32),
    )
    ids[0, :5] = 0
    over_devices(layer, jaxeff.make_mesh(**mesh), RULES, x_BTD, ids)


def test_experts_on_the_devices_that_hold_different_rows():
    layer, rules = dataclasses.replace(SMALL, capacity=1.0), RULES.replace(expert=("data",))
    over_devices(layer, jaxeff.make_mesh(data=4), rules, normal((4, T, D)), np.ones((4, T), np.int32))


@functools.partial(jax.jit, static_argnums=0)
def all_of_it(layer, params, x_BTD, ctx):
    """(outputs, what the layer tells, gradients)."""

    def loss(params, x_BTD):
        out = layer.apply(params, x_BTD, ctx=ctx)
        return jnp.sum(jnp.sin(out.y)) + out.aux["loss"], (out.y, out.aux)

    return jax.grad(loss, (0, 1), has_aux=True)(params, x_BTD)


def over_devices(layer, mesh, rules, x_BTD, ids):
    params = jax.device_put(params_of(layer), jaxeff.shardings(layer.specs(), mesh, rules))
    parts = np.prod([mesh.shape[axis] for axis in dict(rules)["expert"]])
    assert params["up"].addressable_shards[0].data.shape[0] == X // parts
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "sequence"))
    x, on_mesh = jax.device_put((x_BTD, ids), rows)
    found = all_of_it(layer, params, x, Ctx(segment_ids=on_mesh, mesh=mesh, rules=rules))
    assert_close(found, all_of_it(layer, params_of(layer), x_BTD, Ctx(segment_ids=ids)))


@pytest.mark.parametrize("capacity", [None, 1.0])
@pytest.mark.parametrize(
    "transform", [LoRA((("up|gate|down", 2),)), Int8(("up|gate|down",)), Mask((("up|down", 0.5),))]
)
def test_weights_may_be_nodes(transform, capacity):
    layer, x_BTD = dataclasses.replace(SMALL, capacity=capacity), normal((B, T, D))
    plan = transform.plan(layer.specs())
    params = plan.lift(params_of(layer), jax.random.key(1))
    params = jax.tree.map(lambda x: x + 0.1 if x.dtype == jnp.float32 else x, params)
    merged = jax.tree.map(np.asarray, plan.merge(params))
    assert not np.allclose(merged["up"], params_of(layer)["up"])
    # int8's product rounds nothing but the order of its sums.
    assert_close(apply(layer, x_BTD, params=params).y, apply(layer, x_BTD, params=merged).y)


def test_a_layer_computes_its_active_experts():
    layer, x = MoE(32, n_experts=16, n_shared=1), jax.ShapeDtypeStruct((4, 64, 32), jnp.float32)
    run = lambda params, x: layer.apply(params, x).y
    params = jaxeff.abstract(layer.specs())
    expert = 2 * 3 * 32 * layer.hidden
    active = 4 * 64 * (3 * expert + 2 * 32 * 16 + 2 * 16 + 2 * 2 * 32)
    with lowering_for("tpu"):
        exact = flops(run, params, x)
    assert (
        exact["uncounted"] == 0
        and active <= exact["matmul"] + 4 * 64 * (2 * 16 + 2 * 2 * 32)
        and exact["matmul"] <= active
    )
    # Elsewhere the last block of an expert may be partly empty.
    assert active - 4 * 64 * 300 <= flops(run, params, x)["matmul"] <= 1.3 * active
    assert jaxeff.count(layer.mlp(3).specs()) >= jaxeff.count(MLP(32).specs()), "as large as a dense MLP"


@functools.cache
def language_model(**options):
    return LM(16, 16, (Stage((Block(GQA(n_heads=2), MoE(d_hidden=12, n_experts=4, **options)),), 2),))


@functools.partial(jax.jit, static_argnums=(0,))
def fit(lm, params, batch):
    """Objectives before each of 60 steps, and the sums before the first."""
    vector, tree = ravel_pytree(params)
    objective, optimizer = Causal(), optax.adam(1e-2)

    def loss(vector):
        sums = objective.sums(lm, tree(vector), batch)
        return objective.loss(sums), sums

    def step(carry, _):
        vector, state = carry
        (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(vector)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
            updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(vector, updates), state), (value, sums)

    return jax.lax.scan(step, (vector, optimizer.init(vector)), None, length=60)[1]


@pytest.mark.parametrize("capacity", [None, 1.25])
def test_a_language_model_learns_and_its_balance_is_in_the_objective_but_not_in_the_score(capacity):
    lm = language_model(balance=0.5, capacity=capacity)
    tokens = np.random.default_rng(0).integers(0, 16, (2, 24)).astype(np.int32)
    batch = {
        "tokens": tokens,
        "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(24, dtype=np.int32), (2, 1)),
        "loss_mask": np.ones((2, 24), np.float32),
    }
    losses, sums = jax.tree.map(np.asarray, fit(lm, jaxeff.init(lm.specs(), jax.random.key(0)), batch))
    assert losses[0] > 3 and losses[-1] < losses[0] / 2, losses[::10]
    first = {name: type(sum)(*(x[0] for x in sum)) for name, sum in sums.items()}
    told = first["blocks/0/mlp/loss"].mean
    assert told.shape == (2,) and np.all(told > 0.4), "two layers, 0.5 each where balanced"
    assert_close(losses[0], first["nll"].mean + np.sum(told))
    assert Causal().scores(first)["loss"] == first["nll"].mean
    assert first["blocks/0/mlp/load"].mean.shape == (2, 4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_experts": 0}, "MoE.n_experts must be at least 1, found 0"),
        ({"top_k": 0}, "MoE.top_k must be at least 1, found 0"),
        ({"top_k": 9}, "MoE.top_k must be at most n_experts=8, found 9"),
        ({"capacity": 0.0}, "MoE.capacity must be None or a finite number above 0, found 0.0"),
        ({"capacity": float("nan")}, "MoE.capacity must be None"),
        ({"n_shared": -1}, "MoE.n_shared must be at least 0, found -1"),
        ({"balance": -0.1}, "MoE.balance must be at least 0"),
        ({"z_loss": -0.1}, "MoE.z_loss must be at least 0"),
    ],
)
def test_sizes_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        MoE(**options)


def test_an_unknown_score_or_activation_is_named():
    with pytest.raises(UserError, match="no score of experts is called 'softmx'; did you mean 'softmax'?"):
        MoE(score="softmx")
    with pytest.raises(UserError, match="no activation is called 'silo'"):
        MoE(activation="silo")
