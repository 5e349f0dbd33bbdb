"""What every language model must do, whatever its options: six small ones that together use them all.

B batch, T time, V vocabulary. A window of 3 binds within the texts, and nothing divides the odd sizes.
"""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
from jax import numpy as jnp

import jaxeff
from jaxeff.core.precision import POLICIES
from jaxeff.core.sharding import batch_sharding
from jaxeff.core.tree import paths
from jaxeff.mixers import GQA, MLP, RWKV7, Ctx, LayerNorm, RMSNorm, RWKV7Channel, SlidingWindow
from jaxeff.models import LM, Block, Stage, rwkv7_stages
from jaxeff.models.stack import Tied
from tests.closeness import assert_close
from tests.models.toy_mixers import FirstValue, Pair, Shift

B, HALF, V = 4, 5, 17
T = 2 * HALF
SOFTMAX, NORMED, WINDOW = GQA(n_heads=2), GQA(n_heads=2, qk_norm=RMSNorm()), SlidingWindow(window=3, n_heads=2)
SMALL, PLAIN = MLP(d_hidden=24), MLP(d_hidden=24, gated=False, activation="gelu", biases=("up", "down"))
OFFSET = RMSNorm(unit_offset=True)
MEMORY = Tied("memory", Block(Pair(), SMALL))


def lm(*stages, **options):
    return LM(V, 16, stages, **options)


MODELS = {
    "two stages": lm(
        Stage((Block(WINDOW, SMALL),)),
        Stage((Block(SOFTMAX, SMALL), Block(GQA(n_heads=2, rope=None), None)), 2),
        tied=False, embed_scale=2.0, remat="full",
    ),
    "tied": lm(Stage((Block(WINDOW, None), MEMORY), 2), Stage((MEMORY,)), embed_norm=RMSNorm(), remat="dots"),
    "parallel": lm(
        Stage((Block(SOFTMAX, PLAIN, parallel=True, norm=LayerNorm()),), 2),
        norm=LayerNorm(), embed_norm=LayerNorm(),
    ),
    "one norm": lm(
        Stage((Block(WINDOW, SMALL, parallel=True, one_norm=True, norm=LayerNorm(bias=False), residual_scale=0.4),), 2),
        remat="full", scan=False,
    ),
    "sandwich": lm(
        Stage((Block(WINDOW, SMALL, OFFSET, "sandwich"), Block(SOFTMAX, None, placement="sandwich")), 2),
        embed_scale="sqrt", softcap=2.0, norm=OFFSET,
    ),
    "rwkv7": lm(
        *rwkv7_stages(3, RWKV7(head_dim=8, ranks=(3, 4, 5, 6)), RWKV7Channel(d_hidden=20)),
        norm=LayerNorm(), embed_norm=LayerNorm(), tied=False,
    ),
    "post": lm(
        Stage((Block(FirstValue(), None),)),
        Stage((Block(Shift(), SMALL, placement="post"), Block(NORMED, SMALL, placement="post")), 2),
        tied=False,
    ),
}  # fmt: skip
ONES = np.ones((B, T), np.int32)
# Some sixteen terms a sum and half a dozen layers; 1e-6 is usual.
F32 = 1e-5
# bfloat16 rounds by 2^-9 = 2e-3, once or more in each of some ten branches.
BF16 = 3e-2

# All tests of a model follow each other: what they share is compiled once.
every_model = pytest.mark.parametrize("name", MODELS, scope="module")


@functools.cache
def params_of(name):
    """Parameters that are no initial values: each takes part in each comparison."""
    r = np.random.default_rng(1)
    return jax.tree.map(lambda w: 0.3 * r.standard_normal(w.shape, np.float32), jaxeff.abstract(MODELS[name].specs()))


def texts(seed=2):
    return np.random.default_rng(seed).integers(0, V, (B, T)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def learn(model, params, tokens_BT, ctx):
    """Logits, and the gradients of sum(sin(logits))."""

    def loss(params):
        logits_BTV = model.apply(params, tokens_BT, ctx=ctx).y
        return jnp.sum(jnp.sin(logits_BTV)), logits_BTV

    gradients, logits_BTV = jax.grad(loss, has_aux=True)(params)
    return logits_BTV, gradients


@functools.partial(jax.jit, static_argnums=0)
def read(model, params, tokens_BT, ctx):
    """Logits alone."""
    return model.apply(params, tokens_BT, ctx=ctx).y


@functools.partial(jax.jit, static_argnums=0)
def decode(model, params, tokens_BT, state, segment_ids_BT=None):
    out = model.apply(params, tokens_BT, state, ctx=Ctx(segment_ids=segment_ids_BT))
    return out.y, out.state


def whole(name, tokens_BT=None, segment_ids_BT=ONES):
    """Logits of the training form."""
    tokens_BT = texts() if tokens_BT is None else tokens_BT
    return np.asarray(learn(MODELS[name], params_of(name), tokens_BT, Ctx(segment_ids=segment_ids_BT))[0])


@functools.cache
def empty(name):
    return jax.tree.map(np.asarray, MODELS[name].init_state(B, T))


def half(name, tokens_BT, state, segment_ids_BT=ONES[:, :HALF]):
    logits_BTV, state = decode(MODELS[name], params_of(name), tokens_BT, state, segment_ids_BT)
    return np.asarray(logits_BTV), state


def steps(name, tokens_BT, state):
    """Token after token, without segment ids: the segment goes on."""
    found = []
    for t in range(tokens_BT.shape[1]):
        logits_B1V, state = decode(MODELS[name], params_of(name), tokens_BT[:, t : t + 1], state)
        found.append(np.asarray(logits_B1V))
    return np.concatenate(found, axis=1), state


@pytest.mark.either
@every_model
def test_shapes_and_finite_gradients(name):
    segment_ids = ONES.copy()
    segment_ids[0, :3], segment_ids[1, 6:], segment_ids[1, -2:] = 0, 2, 0
    logits_BTV, gradients = learn(MODELS[name], params_of(name), texts(), Ctx(segment_ids=segment_ids))
    chex.assert_shape(logits_BTV, chex.Dimensions(B=B, T=T, V=V)["BTV"])
    chex.assert_type(logits_BTV, jnp.float32)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, params_of(name))
    chex.assert_tree_all_finite((logits_BTV, gradients))
    for path, gradient in paths(gradients).items():
        layers = np.asarray(gradient) if path.startswith("blocks/") else np.asarray(gradient)[None]
        assert all(np.any(layer != 0) for layer in layers), f"{path} takes no part"


@every_model
def test_logits_depend_on_no_later_token(name):
    times, now = np.array([1, 4, 6, T - 1]), np.arange(T)[None]
    tokens, plain = texts(), whole(name)
    tokens[np.arange(B), times] = (tokens[np.arange(B), times] + 1) % V
    changed = np.any(whole(name, tokens) != plain, axis=-1)
    assert not np.any(changed & (now < times[:, None]))
    assert np.all(changed[np.arange(B), times])
    assert np.all(changed[:3][np.arange(3), times[:3] + 1]), "the past is seen"


@pytest.mark.either
@every_model
def test_the_whole_is_its_halves_and_its_tokens(name):
    tokens, expected = texts(), whole(name)
    first, state = half(name, tokens[:, :HALF], empty(name))
    second, _ = half(name, tokens[:, HALF:], state)
    assert_close(np.concatenate([first, second], axis=1), expected, F32, "halves")
    by_token, state = steps(name, tokens, empty(name))
    assert_close(by_token, expected, F32, "tokens")
    assert jax.tree.structure(state) == jax.tree.structure(empty(name))


@every_model
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_ragged_batch_is_each_prompt_alone(name, side):
    prompts, after, lengths = texts(), texts(3)[:, :2], (HALF, 4, 2, 1)
    tokens, segment_ids = texts(4)[:, :HALF], np.zeros((B, HALF), np.int32)
    place = [slice(HALF - n, HALF) if side == "left" else slice(0, n) for n in lengths]
    for b, n in enumerate(lengths):
        tokens[b, place[b]], segment_ids[b, place[b]] = prompts[b, :n], 1
    logits_BTV, state = half(name, tokens, empty(name), segment_ids)
    then_BTV, _ = steps(name, after, state)
    for b, n in enumerate(lengths):
        alone, state = steps(name, prompts[:, :n], empty(name))
        assert_close(logits_BTV[b, place[b]], alone[b], F32, f"prompt of {n}")
        assert_close(then_BTV[b], steps(name, after, state)[0][b], F32, f"after a prompt of {n}")


@every_model
def test_packed_segments_do_not_see_each_other(name):
    boundaries, now = np.array([1, 3, 6, T - 1])[:, None], np.arange(T)[None]
    segment_ids = 1 + (now >= boundaries).astype(np.int32)
    tokens, after = texts(), segment_ids == 2
    logits_BTV = whole(name, tokens, segment_ids)
    changed = whole(name, np.where(after, tokens, texts(5)), segment_ids)
    assert np.array_equal(logits_BTV[after], changed[after])

    # The second segment at the start of its row, the rest of which is padding.
    moved = np.take_along_axis(tokens, (now + boundaries) % T, axis=1)
    alone = whole(name, moved, (now + boundaries < T).astype(np.int32))
    back = np.take_along_axis(alone, ((now - boundaries) % T)[:, :, None], axis=1)
    assert_close(logits_BTV[after], back[after], F32)


@every_model
def test_a_model_is_the_same_however_its_layers_are_run(name):
    model, ctx = MODELS[name], Ctx(segment_ids=ONES)
    plain = learn(dataclasses.replace(model, scan=False, remat="none"), params_of(name), texts(), ctx)
    other = dict(scan=True, remat="full" if model.remat == "none" else "none")
    for how in (dict(), other):
        found = learn(dataclasses.replace(model, **how), params_of(name), texts(), ctx)
        assert_close(found, plain, F32, str(how))


@every_model
def test_bfloat16_is_near_float32(name):
    policy = POLICIES["bfloat16"]
    out = jax.eval_shape(functools.partial(MODELS[name].hidden, ctx=Ctx(policy=policy)), params_of(name), texts())
    assert out.y.dtype == jnp.bfloat16
    ctx = Ctx(segment_ids=ONES, policy=policy)
    found = jax.eval_shape(functools.partial(learn, MODELS[name], ctx=ctx), params_of(name), texts())
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}, "logits and gradients"
    assert_close(read(MODELS[name], params_of(name), texts(), ctx), whole(name), BF16)


@pytest.mark.either
@every_model
def test_sharded_is_unsharded(name):
    mesh = jaxeff.make_mesh(fsdp=2, tensor=2)
    params = jax.device_put(params_of(name), jaxeff.shardings(MODELS[name].specs(), mesh))
    assert not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))
    tokens, ones = jax.device_put((texts(), ONES), batch_sharding(mesh))
    sharded = learn(MODELS[name], params, tokens, Ctx(segment_ids=ones, mesh=mesh))
    assert_close(sharded, learn(MODELS[name], params_of(name), texts(), Ctx(segment_ids=ONES)), F32)


@every_model
def test_what_is_declared_is_what_is_made(name):
    specs = MODELS[name].specs()
    made = jax.eval_shape(lambda key: jaxeff.init(specs, key), jax.random.key(0))
    assert jax.tree.structure(made) == jax.tree.structure(jaxeff.abstract(specs))
    declared = {path: (leaf.shape, leaf.dtype) for path, leaf in paths(jaxeff.abstract(specs)).items()}
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in paths(made).items()} == declared
    assert sum(leaf.size for leaf in paths(made).values()) == jaxeff.count(specs)


def test_parameter_paths():
    """Of the model with tied weights and of one with every norm; paths are what rules and checkpoints name."""
    mlp = {"up", "down", "gate"}
    tied = {f"mixer/{w}" for w in ("w", "o")} | {f"mlp/{w}" for w in mlp} | {"mixer_norm/scale", "mlp_norm/scale"}
    assert set(paths(MODELS["tied"].specs())) == (
        {"embed", "embed_norm/scale", "norm/scale", "blocks/0/mixer_norm/scale"}
        | {f"blocks/0/mixer/{w}" for w in "qkvo"}
        | {f"tied/memory/{path}" for path in tied}
    )
    norms = {f"{part}_{norm}/scale" for part in ("mixer", "mlp") for norm in ("norm", "post_norm")}
    assert set(paths(MODELS["sandwich"].specs()["blocks"]["0"])) == (
        norms | {f"mixer/{w}" for w in "qkvo"} | {f"mlp/{w}" for w in mlp}
    )
