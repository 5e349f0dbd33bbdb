"""The stack's part of the contract: shared values, auxiliary values, tied weights, dropout and taps, the same however the layers
are run. B batch, T time, D model."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxeff
from jaxeff.core.errors import UserError
from jaxeff.core.spec import abstract
from jaxeff.core.tree import paths
from jaxeff.evaluate.scores import evaluate
from jaxeff.mixers import GQA, MLP, Ctx, RetNet
from jaxeff.mixers.base import Shared, dropout
from jaxeff.mixers.registry import MIXERS
from jaxeff.models import LM, Block, Stage
from jaxeff.models.stack import Stack, Tied
from jaxeff.objectives import Causal, Sum
from jaxeff.train.step import make_step, put, start
from tests.closeness import assert_close
from tests.compiled import values
from tests.models.toy_mixers import FirstValue, Ones, Pair, Secret, Shift, Told
from tests.train.tiny import experiment

B, T, D, V = 2, 10, 16, 17
KEY = jax.random.key(0)
TOKENS = np.random.default_rng(1).integers(0, V, (B, T)).astype(np.int32)
# Layers in another order of operations, not of sums: a few roundings of 6e-8.
EXACT = 1e-6
MLP_ = MLP(d_hidden=24)
HOW = [dict(scan=False), dict(remat="full"), dict(scan=False, remat="dots")]
however = pytest.mark.parametrize("how", HOW, ids=str)


def lm(*stages, **options):
    return LM(V, D, stages, **options)


FIRST = Stage((Block(FirstValue(), MLP_),))
SHARING = lm(FIRST, Stage((Block(Shift(), None), Block(Shift(), MLP_)), 2))


# Programs run for microseconds: their machine code is not worth optimising.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def noisy(layer):
    """Parameters that are no initial values: each takes part in each comparison."""
    r = np.random.default_rng(2)
    return jax.tree.map(lambda w: 0.3 * r.standard_normal(w.shape, np.float32), jaxeff.abstract(layer.specs()))


@functools.partial(jit, static_argnums=0)
def apply_to(layer, params, x, state=None, ctx=Ctx()):
    return layer.apply(params, x, state, ctx=ctx)


@functools.partial(jit, static_argnums=0)
def everything(model, params, tokens_BT, ctx):
    """Logits, auxiliary values, and the gradients of a sum over both."""

    def loss(params):
        out = model.apply(params, tokens_BT, ctx=ctx)
        told = sum(jnp.sum(jnp.sin(value)) for value in out.aux.values())
        return jnp.sum(jnp.sin(out.y)) + told, (out.y, out.aux)

    gradients, (logits_BTV, aux) = jax.grad(loss, has_aux=True)(params)
    return logits_BTV, aux, gradients


def whole(model, params=None, ctx=Ctx()):
    return everything(model, noisy(model) if params is None else params, TOKENS, ctx)


def pieces(model, sizes, state=None, tokens=TOKENS):
    """(logits of the text in pieces, the state after it)."""
    state, found, at = model.init_state(B, T) if state is None else state, [], 0
    for size in sizes:
        out = apply_to(model, noisy(model), tokens[:, at : at + size], state, Ctx())
        found.append(np.asarray(out.y))
        state, at = out.state, at + size
    return np.concatenate(found, axis=1), state


# Shared values


@however
def test_a_shared_value_is_the_same_however_layers_are_run(how):
    assert_close(whole(dataclasses.replace(SHARING, **how), noisy(SHARING)), whole(SHARING), EXACT)


def test_a_shared_value_reaches_the_gradients_of_its_writer():
    """The layers after it are its only readers beside its own residual stream."""
    params = noisy(SHARING)
    cut = params | {"blocks": params["blocks"] | {"2": jax.tree.map(np.zeros_like, params["blocks"]["2"])}}
    ours, theirs = (whole(SHARING, p)[2]["blocks"]["0"]["mixer"]["v"] for p in (params, cut))
    assert np.all(np.isfinite(ours)) and np.max(np.abs(ours - theirs)) > 1e-3


@pytest.mark.parametrize("sizes", [(1,) * T, (T // 2, T - T // 2), (3, 1, 1, T - 5)], ids=["tokens", "halves", "mixed"])
def test_sharing_layers_in_pieces_are_the_whole(sizes):
    assert_close(pieces(SHARING, sizes)[0], whole(SHARING)[0], EXACT)


@pytest.mark.parametrize("side", ["left", "right"])
def test_sharing_layers_take_a_ragged_batch(side):
    n, lengths, after = 6, (5, 3), TOKENS[:, 7:]
    tokens, ids = TOKENS[:, ::-1][:, :n].copy(), np.zeros((B, n), np.int32)
    place = [slice(n - k, n) if side == "left" else slice(0, k) for k in lengths]
    for b, k in enumerate(lengths):
        tokens[b, place[b]], ids[b, place[b]] = TOKENS[b, :k], 1
    out = apply_to(SHARING, noisy(SHARING), tokens, SHARING.init_state(B, T), Ctx(segment_ids=ids))
    then, _ = pieces(SHARING, (1, 1, 1), out.state, after)
    for b, k in enumerate(lengths):
        alone, state = pieces(SHARING, (1,) * k)
        assert_close(np.asarray(out.y)[b, place[b]], alone[b], EXACT, f"prompt of {k}")
        assert_close(then[b], pieces(SHARING, (1, 1, 1), state, after)[0][b], EXACT, f"after a prompt of {k}")


def test_a_reader_without_writer_is_told_who_could_write(monkeypatch):
    monkeypatch.setitem(MIXERS, "first", FirstValue)
    with pytest.raises(
        UserError, match="Shift in stage 0 reads .*'v_first', which no block before .*'first' and 'rwkv7' would write"
    ):
        Stack((Stage((Block(Shift()),), 2),), D)


def test_a_reader_without_writer_in_the_registry():
    with pytest.raises(UserError, match="which no block before it writes; 'rwkv7' would write it"):
        lm(Stage((Block(Shift()),)))


def test_a_value_written_only_later_is_refused():
    with pytest.raises(UserError, match="Shift in stage 0 reads .* which no block before it writes"):
        lm(Stage((Block(Shift()), Block(FirstValue()))))
    with pytest.raises(UserError, match="Shift in stage 1 reads .* which no block before it writes"):
        lm(Stage(("gqa",)), Stage((Block(Shift()),)), FIRST)


def test_a_value_written_in_a_repeat_ends_with_it():
    with pytest.raises(UserError, match="Shift in stage 1 reads .*, which stage 0 writes; but that stage is repeated"):
        lm(Stage((Block(FirstValue()),), 2), Stage((Block(Shift()),)))


def test_a_value_of_the_repeat_before_is_not_seen():
    with pytest.raises(UserError, match="no block before it writes"):
        lm(Stage((Block(Shift()), Block(FirstValue())), 2))


def test_a_value_is_read_later_in_its_repeat():
    """Each repeat has its own: the repeats are stages of one repeat."""
    blocks = (Block(FirstValue(), None), Block(Shift(), MLP_))
    repeated, apart = lm(Stage(blocks, 2)), lm(Stage(blocks), Stage(blocks))
    params, stacked = noisy(repeated), noisy(repeated)["blocks"]
    split = {str(2 * r + i): jax.tree.map(lambda w, r=r: w[r : r + 1], stacked[str(i)]) for r in (0, 1) for i in (0, 1)}
    logits, _, _ = whole(repeated)
    assert_close(logits, whole(apart, params | {"blocks": split})[0], EXACT)
    assert_close(whole(dataclasses.replace(repeated, scan=False), params)[0], logits, EXACT)


def test_a_value_rewritten_in_a_repeat_is_the_first_one_after_it():
    """What a repeated stage writes never leaves it, also over a value that lasts."""
    stages = Stage((Block(FirstValue(), None),)), Stage((Block(FirstValue(), None),), 2), Stage((Block(Shift(), None),))
    shared = [apply_to(lm(*some), noisy(lm(*stages)), TOKENS).shared["v_first"] for some in (stages, stages[:1])]
    unrolled = apply_to(lm(*stages, scan=False), noisy(lm(*stages)), TOKENS).shared["v_first"]
    assert equal(shared[0], shared[1]) and equal(unrolled, shared[1])


def test_a_value_that_is_not_declared_is_refused():
    with pytest.raises(ValueError, match="Secret shares 'secret', which its `writes` does not name"):
        lm(Stage((Block(Secret()),))).apply(noisy(SHARING), TOKENS)


def test_the_model_shares_its_embedding():
    model = lm(Stage((Block(Pair(), None),)), embed_scale=3.0)
    out = apply_to(model, noisy(model), TOKENS)
    assert_close(out.shared["embedding"], 3 * noisy(model)["embed"][TOKENS], EXACT)


def test_shared_values_cannot_be_changed():
    shared = Shared({"v": 1})
    with pytest.raises(TypeError, match="does not support item assignment"):
        Ctx(shared=shared).shared["v"] = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Ctx().shared = shared
    assert dict(shared | {"w": 3}) == {"v": 1, "w": 3} and dict(shared) == {"v": 1}


def test_shared_values_can_be_asked_for():
    shared = Shared({"v": 1})
    assert "v" in shared and "w" not in shared
    assert shared.get("w") is None and shared.get("w", 2) == 2 and shared.get("v") == 1


def test_a_layer_alone_says_what_it_misses():
    mixer = Shift(D)
    with pytest.raises(UserError, match="no layer before this one shares 'v_first'; did you mean 'v_frist'"):
        mixer.apply(values(mixer, KEY), jnp.ones((B, T, D)), ctx=Ctx(shared=Shared({"v_frist": 1})))


# Auxiliary values

TELLING = lm(Stage((Block(Told(), MLP_),)), Stage((Block(GQA(n_heads=2), Told()), Block(Told(), None)), 2))
PATHS = {"blocks/0/mixer": 1, "blocks/1/mlp": 2, "blocks/2/mixer": 2}


def test_aux_stands_under_its_path_for_each_repeat():
    for apply in (TELLING.apply, TELLING.hidden):
        aux = jax.eval_shape(apply, noisy(TELLING), TOKENS).aux
        expected = {
            f"{path}/{name}": (n, *shape) for path, n in PATHS.items() for name, shape in (("loss", ()), ("load", (2,)))
        }
        assert {path: value.shape for path, value in aux.items()} == expected


@however
def test_aux_is_the_same_however_layers_are_run(how):
    assert_close(whole(dataclasses.replace(TELLING, **how), noisy(TELLING)), whole(TELLING), EXACT)


def full_batch(vocab, rows=B, length=T, seed=3):
    tokens = np.random.default_rng(seed).integers(0, vocab, (rows, length)).astype(np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    mask = (positions < length - 1).astype(np.float32)
    return {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": positions, "loss_mask": mask}


def test_aux_losses_reach_the_objective_and_its_gradient():
    batch = full_batch(V)

    def by_hand(params):
        out = TELLING.apply(params, batch["tokens"])
        logp_BTV = jax.nn.log_softmax(out.y)[:, :-1]
        nll = -jnp.mean(jnp.take_along_axis(logp_BTV, batch["tokens"][:, 1:, None], axis=-1))
        return nll + sum(jnp.sum(out.aux[f"{path}/loss"]) for path in PATHS)

    def told(params):
        sums = Causal().sums(TELLING, params, batch)
        return Causal().loss(sums), sums

    (loss, sums), gradients = jit(jax.value_and_grad(told, has_aux=True))(noisy(TELLING))
    assert_close((loss, gradients), jit(jax.value_and_grad(by_hand))(noisy(TELLING)), 1e-5)
    aux = apply_to(TELLING, noisy(TELLING), batch["tokens"]).aux
    for path, value in aux.items():
        assert_close(sums[path].mean, value, EXACT, path)
    assert float(loss - sums["nll"].mean) > 1e-3, "the losses are too small to be seen"


def run_of(model, *assignments, objective=None):
    """The tiny experiment with another model."""
    e = dataclasses.replace(experiment(*assignments), model=model)
    return e if objective is None else dataclasses.replace(e, objective=objective)


def steps(e, batches):
    """(metrics of each step, the last state)."""
    step = make_step(e)
    state, found = start(e, step), []
    for batch in batches:
        state, metrics = step.step(state, put(batch, step.mesh))
        found.append(jax.device_get(metrics))
    return found, state


def test_aux_losses_of_micro_batches_are_those_of_the_batch():
    batches = [full_batch(V, rows=4, seed=seed) for seed in (4, 5)]
    one, state_1 = steps(run_of(TELLING), batches)
    two, state_2 = steps(run_of(TELLING, "train.accumulate=2"), batches)
    for a, b in zip(one, two, strict=True):
        names = ["loss", "grad_norm", *(path for path in a if path.endswith("load"))]
        assert len(names) == 5
        assert_close({n: b[n] for n in names}, {n: a[n] for n in names}, 1e-5)
    assert_close(state_2.params, state_1.params, 1e-4)


# Tied weights

SHARED_BLOCK = Block(Pair(), MLP_)
OWN = Block(GQA(n_heads=2), None)
TIED = lm(Stage((OWN, Tied("memory", SHARED_BLOCK)), 3))
APART = lm(*(Stage((OWN, Tied("memory", SHARED_BLOCK))),) * 3)
UNTIED = lm(Stage((OWN, SHARED_BLOCK), 3))


def apart(params):
    """The parameters, or gradients, of TIED for APART."""
    stacked = params["blocks"]["0"]
    return params | {"blocks": {str(2 * r): jax.tree.map(lambda w, r=r: w[r : r + 1], stacked) for r in range(3)}}


def test_tied_weights_stand_once():
    for model in (TIED, APART):
        found = paths(model.specs())
        assert found["tied/memory/mixer/w"].shape == (2 * D, D) and found["tied/memory/mlp/up"].shape == (D, 24)
        assert not any(path.startswith("blocks/1/") for path in found)
    once = jaxeff.count(SHARED_BLOCK.bind(D).specs())
    assert jaxeff.count(TIED.specs()) == jaxeff.count(APART.specs()) == jaxeff.count(UNTIED.specs()) - 2 * once


def test_tied_blocks_have_a_state_for_each_depth():
    state, other = (jax.eval_shape(lambda m=m: m.init_state(B, T)) for m in (TIED, APART))
    assert state["1"]["mixer"]["x"].shape == (3, B, D)
    assert set(other) == set("012345") and other["5"]["mixer"]["x"].shape == (1, B, D)
    (_, one), (_, three) = pieces(TIED, (T,)), pieces(TIED, (1,) * T)
    last = np.asarray(one["1"]["mixer"]["x"])
    assert_close(three["1"]["mixer"]["x"], last, EXACT)
    assert np.min(np.std(last, axis=0)) > 0, "each depth has seen something else"


@however
def test_tied_layers_are_the_same_however_they_are_run(how):
    assert_close(whole(dataclasses.replace(TIED, **how), noisy(TIED)), whole(TIED), EXACT)


def test_tied_weights_in_one_stage_are_those_of_three():
    logits, _, gradients = whole(TIED)
    assert_close(whole(APART, apart(noisy(TIED))), (logits, {}, apart(gradients)), EXACT)


def test_gradients_of_tied_weights_are_summed_over_depths():
    params = noisy(TIED)
    copies = jax.tree.map(lambda w: np.stack([w] * 3), params["tied"]["memory"])
    untied = {name: value for name, value in params.items() if name != "tied"}
    untied["blocks"] = params["blocks"] | {"1": copies}
    logits, _, gradients = whole(TIED)
    expected, _, apart = whole(UNTIED, untied)
    assert_close(logits, expected, EXACT)
    assert_close(gradients["tied"]["memory"], jax.tree.map(lambda g: np.sum(g, axis=0), apart["blocks"]["1"]), EXACT)
    assert_close(gradients["blocks"]["0"], apart["blocks"]["0"], EXACT)


@pytest.mark.parametrize("model", [TIED, APART], ids=["repeated", "apart"])
def test_tied_layers_in_pieces_are_the_whole(model):
    assert_close(pieces(model, (4, 1, 1, 4))[0], whole(model)[0], 1e-5)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "dropout"])
def test_a_stage_of_nothing_but_tied_blocks(key):
    tied = Tied("memory", dataclasses.replace(SHARED_BLOCK, dropout=0.3))
    model, ctx = lm(Stage((tied,), 3)), Ctx(key=key)
    assert_close(whole(model, ctx=ctx), whole(dataclasses.replace(model, scan=False), noisy(model), ctx), EXACT)


def test_tied_weights_start_at_the_depth_of_the_whole_model():
    shallow, deep = (lm(Stage((Tied("memory", SHARED_BLOCK),), n)) for n in (3, 12))
    a, b = jax.jit(lambda: [values(model, KEY)["tied"]["memory"] for model in (shallow, deep)])()
    for part, name, n_in in (("mixer", "o", D), ("mlp", "down", 24)):
        assert_close(a[part][name], 2 * b[part][name], EXACT)
        assert float(jnp.std(a[part][name])) == pytest.approx((n_in * 2 * 3) ** -0.5, rel=0.15)
    assert_close(a["mixer"]["w"], b["mixer"]["w"], 0)


def test_one_name_for_two_blocks_is_refused():
    with pytest.raises(UserError, match="Tied 'memory' stands for two different blocks"):
        lm(Stage((Tied("memory", SHARED_BLOCK), Tied("memory", OWN))))


# Dropout


def dropping(rate, **options):
    return lm(Stage((Block(GQA(n_heads=2), MLP_, dropout=rate),), 2), **options)


DROPPING = dropping(0.3)
WITH_KEY = Ctx(key=jax.random.key(7))


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_without_a_key_nothing_is_dropped():
    assert equal(whole(DROPPING), whole(dropping(0.0), noisy(DROPPING)))


def test_dropout_is_a_function_of_the_key():
    one, again, other = (whole(DROPPING, ctx=Ctx(key=jax.random.key(k)))[0] for k in (7, 7, 8))
    assert equal(one, again) and not np.any(one == other)
    assert not np.any(one == whole(DROPPING)[0])


@however
def test_dropout_is_the_same_however_layers_are_run(how):
    found = whole(dataclasses.replace(DROPPING, **how), noisy(DROPPING), WITH_KEY)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    assert_close(found, whole(DROPPING, ctx=WITH_KEY), EXACT)


def masks(model, key=WITH_KEY.key):
    """What each layer added to the residual stream, times the share kept: [layers, B, T, D]."""
    taps = tuple(f"blocks/{place.i}" for place in model.stack)
    x_BTD = jnp.zeros((B, T, D))
    aux = apply_to(model.stack, noisy(model), x_BTD, None, Ctx(key=key, taps=taps)).aux
    outputs = np.concatenate([aux[f"{path}/output"] for path in taps])
    return np.diff(outputs, axis=0, prepend=np.zeros((1, B, T, D))) * 0.7


def test_layers_draw_different_masks():
    block = Block(Ones(), None, dropout=0.3)
    found = masks(lm(Stage((block,)), Stage((block,), 3), Stage((Tied("a", block),), 2)))
    assert len(found) == 6 and np.allclose(found * (1 - found), 0, atol=1e-5)
    flat = np.round(found).reshape(6, -1)
    agree = np.mean(flat[:, None] == flat[None], axis=-1)
    np.testing.assert_allclose(agree[~np.eye(6, dtype=bool)], 0.7**2 + 0.3**2, atol=0.12)
    rows = np.round(found).reshape(6 * B, -1)
    assert len(np.unique(rows, axis=0)) == 6 * B


def test_both_branches_of_a_block_draw_different_masks():
    found = np.round(masks(lm(Stage((Block(Ones(), Ones(), dropout=0.3),)))))
    np.testing.assert_allclose([np.mean(found == n) for n in (0, 1, 2)], [0.09, 0.42, 0.49], atol=0.1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dropout_keeps_the_mean(dtype):
    y = dropout(jnp.ones((200, 200), dtype), 0.3, KEY)
    assert y.dtype == dtype
    y = np.asarray(y, np.float32)
    assert np.mean(y == 0) == pytest.approx(0.3, abs=0.01) and np.mean(y) == pytest.approx(1, abs=0.02)


@dataclasses.dataclass(frozen=True)
class Spread(Causal):
    """Tells the square of each micro-batch's distance from chance: its mean is the square of the mean where all are equal."""

    def sums(self, model, params, batch, ctx=Ctx()):
        sums = super().sums(model, params, batch, ctx)
        loss, n = sums["loss"]
        return sums | {"own/square": Sum((loss / n - math.log(V)) ** 2 * n, n)}


def variance(metrics):
    return float(metrics["own/square"]) - (float(metrics["loss"]) - math.log(V)) ** 2


def test_training_draws_from_the_seed_and_the_step():
    batch = full_batch(V, rows=4)
    run = lambda *settings: [
        float(m["loss"]) for m in steps(run_of(DROPPING, "optim.lr=1e-9", *settings), [batch] * 3)[0]
    ]
    one = run("seed=1")
    assert one == run("seed=1") and len(set(one)) == 3
    still = [float(m["loss"]) for m in steps(run_of(dropping(0.0), "optim.lr=1e-9"), [batch] * 2)[0]]
    assert still[0] == pytest.approx(still[1], rel=1e-6)
    assert max(one) - min(one) > 1e-4


def test_micro_batches_draw_different_masks():
    row = full_batch(V, rows=1)
    batch = {name: np.concatenate([value] * 2) for name, value in row.items()}
    found = [
        variance(steps(run_of(dropping(rate), "train.accumulate=2", objective=Spread()), [batch])[0][0])
        for rate in (0.0, 0.3)
    ]
    assert abs(found[0]) < 1e-8 and found[1] > 1e-6, found


def test_evaluation_drops_nothing():
    batch, params = full_batch(V), noisy(DROPPING)
    found, expected = (evaluate(Causal(), dropping(rate), params, [batch]) for rate in (0.3, 0.0))
    assert found == expected


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rates_that_cannot_be(rate):
    with pytest.raises(ValueError, match=r"Block.dropout must lie in \[0, 1\)"):
        Block(OWN, dropout=rate)


def test_what_a_layer_computes_again_its_mixer_does_not_compute_once_more():
    def checkpoints(remat: str) -> int:
        lm = LM(17, 16, (Stage((Block(RetNet(n_heads=2), None),), 2),), remat=remat)
        tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        return str(jax.make_jaxpr(lambda p, t: lm.apply(p, t).y)(abstract(lm.specs()), tokens)).count("remat2[")

    assert checkpoints("none") == 2, "of the recurrence, and of the gate after it"
    assert checkpoints("full") == checkpoints("dots") == 1, "of the layer"


def test_products_that_are_computed_again():
    def products(remat: str) -> int:
        lm = LM(17, 16, (Stage((Block(GQA(n_heads=2), MLP(d_hidden=32)),), 2),), remat=remat)
        tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)
        loss = lambda p, t: jnp.sum(lm.apply(p, t).y)  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(abstract(lm.specs()), tokens)).count("dot_general[")

    assert products("narrow") == products("dots") + 2, "gate and up"
    assert products("attention") == products("narrow") + 4, "q, k, v, o"
    assert products("full") == products("attention") + 2, "attention's"
