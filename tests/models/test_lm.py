import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import jaxeff
from jaxeff.core.sharding import MESH_AXES
from jaxeff.mixers import GQA, MLP, Ctx, LayerNorm, RMSNorm, SlidingWindow
from jaxeff.models import LM, Block, Stage
from jaxeff.objectives.causal import Causal, next_tokens
from jaxeff.ops.losses import cross_entropy_reference
from jaxeff.ops.rope import Rope
from tests.closeness import assert_close
from tests.compiled import apply_mixer, apply_model

TOKENS = np.random.default_rng(1).integers(0, 17, (2, 9)).astype(np.int32)
# A window that binds within the nine tokens here.
WINDOW = Block(SlidingWindow(window=3, n_heads=2))
SMALL = LM(17, d_model=16, stages=(Stage((Block(GQA(n_heads=2), MLP(d_hidden=24)), "linear"), 2),))


@functools.cache
def drawn(layer):
    """Parameters that are no initial values: each takes part in each comparison."""
    r = np.random.default_rng(0)
    return jax.tree.map(lambda w: 0.3 * r.standard_normal(w.shape, np.float32), jaxeff.abstract(layer.specs()))


def values(layer):
    """The same, in dictionaries that may be changed."""
    return jax.tree.map(jnp.asarray, drawn(layer))


def logits(lm, params=None):
    return apply_model(lm, values(lm) if params is None else params, TOKENS, None, Ctx())[0]


def test_paths_and_stacking():
    specs = SMALL.specs()
    assert specs["blocks"]["0"]["mixer"]["q"].shape == (2, 16, 2, 8)
    assert set(specs["blocks"]) == {"0", "1"} and SMALL.n_layers == 4 and "head" not in specs


def test_scan_is_the_unrolled_model():
    params = values(SMALL)
    unrolled = dataclasses.replace(SMALL, scan=False)

    def loss(lm, params):
        return jnp.sum(jnp.sin(lm.apply(params, TOKENS).y))

    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=0)
    ours = value_and_grad(SMALL, params)
    for lm in (unrolled, dataclasses.replace(SMALL, remat="full"), dataclasses.replace(SMALL, remat="dots")):
        assert_close(value_and_grad(lm, params), ours, 1e-5)


@pytest.mark.parametrize("lm", [SMALL, LM(17, 16, (Stage((WINDOW,), 1), Stage(("gqa", WINDOW), 2)), tied=False)])
def test_decoding_is_the_whole_forward(lm):
    params = values(lm)
    whole = logits(lm, params)
    state = lm.init_state(2, 9)
    for t in range(9):
        piece, state, *_ = apply_model(lm, params, TOKENS[:, t : t + 1], state, Ctx())
        assert jnp.max(jnp.abs(piece[:, 0] - whole[:, t])) < 2e-5


def unit(x_BTD, scale=1.0, eps=1e-6):
    return x_BTD / np.sqrt(np.mean(x_BTD**2, axis=-1, keepdims=True) + eps) * np.asarray(scale)


def branch(mixer, params, x_BTD):
    return np.asarray(apply_mixer(mixer, params, jnp.asarray(x_BTD, jnp.float32), None, Ctx()).y, np.float64)


def pre(p, f, g, x):
    x = x + f(unit(x, p["mixer_norm"]["scale"]))
    return x + g(unit(x, p["mlp_norm"]["scale"]))


def post(p, f, g, x):
    x = x + unit(f(x), p["mixer_post_norm"]["scale"])
    return x + unit(g(x), p["mlp_post_norm"]["scale"])


def sandwich(p, f, g, x):
    x = x + unit(f(unit(x, p["mixer_norm"]["scale"])), p["mixer_post_norm"]["scale"])
    return x + unit(g(unit(x, p["mlp_norm"]["scale"])), p["mlp_post_norm"]["scale"])


def parallel(p, f, g, x):
    return x + f(unit(x, p["mixer_norm"]["scale"])) + g(unit(x, p["mlp_norm"]["scale"]))


def one_norm(p, f, g, x):
    return x + f(unit(x, p["norm"]["scale"])) + g(unit(x, p["norm"]["scale"]))


def scaled(p, f, g, x):
    x = x + 0.3 * f(unit(x, p["mixer_norm"]["scale"]))
    return x + 0.3 * g(unit(x, p["mlp_norm"]["scale"]))


def centred(p, f, g, x):
    def layer(x, q):
        x = x - x.mean(-1, keepdims=True)
        return unit(x, q["scale"], 1e-5) + np.asarray(q["bias"])

    x = x + f(layer(x, p["mixer_norm"]))
    return x + g(layer(x, p["mlp_norm"]))


@pytest.mark.parametrize(
    ("formula", "options"),
    [
        (pre, {}),
        (post, dict(placement="post")),
        (sandwich, dict(placement="sandwich")),
        (parallel, dict(parallel=True)),
        (one_norm, dict(parallel=True, one_norm=True)),
        (scaled, dict(residual_scale=0.3)),
        (centred, dict(norm=LayerNorm())),
    ],
)
def test_a_block_is_its_formula(formula, options):
    block = Block(GQA(n_heads=2), MLP(d_hidden=24), **options).bind(16)
    params, x_BTD = drawn(block), np.random.default_rng(3).standard_normal((2, 5, 16))
    f, g = (functools.partial(branch, part, params[name]) for name, part in block.parts.items())
    expected = formula(params, f, g, x_BTD)
    assert_close(branch(block, params, x_BTD), expected, 1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {}, dict(tied=False), dict(embed_scale="sqrt"), dict(embed_scale=2.0), dict(softcap=0.1), dict(embed_norm=RMSNorm()),
        dict(norm=RMSNorm(eps=0.1, unit_offset=True)),
    ],
    ids=["plain", "untied", "sqrt", "scaled", "softcap", "embed-norm", "norm"],
)  # fmt: skip
def test_a_model_is_its_formula(options):
    """Embedding, stack, norm and head written out; the stack is tested by itself."""
    lm = LM(17, d_model=16, stages=(Stage((Block(GQA(n_heads=2)),), 2),), **options)
    params = values(lm)
    x_BTD = np.asarray(params["embed"], np.float64)[TOKENS]
    x_BTD = x_BTD * {"sqrt": 4.0, 2.0: 2.0, None: 1.0}[lm.embed_scale]
    x_BTD = unit(x_BTD, params["embed_norm"]["scale"]) if lm.embed_norm else x_BTD
    x_BTD = branch(lm.stack, {"blocks": params["blocks"]}, x_BTD)
    x_BTD = unit(x_BTD, np.asarray(params["norm"]["scale"]) + lm.norm.unit_offset, lm.norm.eps)
    logits_BTV = x_BTD @ np.asarray(params["embed"].T if lm.tied else params["head"], np.float64)
    logits_BTV = lm.softcap * np.tanh(logits_BTV / lm.softcap) if lm.softcap else logits_BTV
    assert_close(logits(lm, params), logits_BTV, 1e-5)


def test_a_block_without_mlp_has_one_branch():
    block = Block(GQA(n_heads=2), None).bind(16)
    assert set(block.specs()) == {"mixer", "mixer_norm"}


def test_bfloat16_compute():
    ctx = Ctx(policy=jaxeff.core.precision.POLICIES["bfloat16"])
    assert jax.eval_shape(functools.partial(SMALL.hidden, ctx=ctx), values(SMALL), TOKENS).y.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LM(17, 16, (Stage(("gqaa",), 4),)), "no mixer is called 'gqaa'; did you mean 'gqa'"),
        (
            lambda: LM(17, 16, (Stage((Block(GQA(32)),), 4),)),
            r"GQA\(d_model=32\) cannot stand in a model of d_model=16",
        ),
        (lambda: LM(0), "vocab_size must be at least 1"),
        (lambda: LM(17, remat="fulll"), "no remat policy is called 'fulll'; did you mean 'full'"),
        (lambda: Block(GQA(), norm="rms"), r"Block.norm must be RMSNorm\(...\) or LayerNorm"),
        (lambda: Block(GQA(), placement="before"), "Block.placement"),
        (lambda: Block(GQA(), one_norm=True), "one_norm needs parallel=True"),
        (lambda: Stage(()), "Stage.pattern is empty"),
        (lambda: Stage("gqa"), "Stage.pattern is a tuple of blocks"),
        (lambda: LM(17, 16, ()), "at least one Stage"),
        (lambda: LM(17, softcap=0.0), "LM.softcap must be above 0"),
        (lambda: LM(17, 16, (Stage((Block(GQA(rope=Rope(fraction=0.2))),)),)), "fraction 0.2 of head_dim 16 is 3"),
    ],
)
def test_impossible_models_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_models_are_values():
    assert SMALL == dataclasses.replace(SMALL) and hash(SMALL) == hash(dataclasses.replace(SMALL))
    named, built = (LM(17, 16, (Stage((entry,), 4),)) for entry in ("window", Block(SlidingWindow())))
    assert named == built != LM(17, 16, (Stage(("window",), 5),))


@pytest.mark.shipped
@pytest.mark.parametrize("shape", [dict(data=2, tensor=2), dict(fsdp=4), dict(data=2, sequence=2)], ids=str)
def test_sharded_is_unsharded(shape):
    mesh = jaxeff.make_mesh(**shape)
    tokens = np.concatenate([TOKENS, TOKENS])[:, :8]
    params = values(SMALL)
    plain = apply_model(SMALL, params, tokens, None, Ctx())[0]
    placed = jax.device_put(params, jaxeff.shardings(SMALL.specs(), mesh))
    tokens = jax.device_put(tokens, jaxeff.core.sharding.batch_sharding(mesh))
    sharded = apply_model(SMALL, placed, tokens, None, Ctx(mesh=mesh))[0]
    assert np.max(np.abs(np.asarray(sharded) - np.asarray(plain))) < 1e-5


def test_a_step_lowers_for_a_mesh_that_does_not_exist():
    mesh = jax.sharding.AbstractMesh((16, 1, 2, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    specs = SMALL.specs()
    params = jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        jaxeff.abstract(specs), jaxeff.shardings(specs, mesh),
    )  # fmt: skip
    tokens = jax.ShapeDtypeStruct((32, 8), jnp.int32)

    def loss(params, tokens):
        return SMALL.apply(params, tokens, ctx=Ctx(mesh=mesh)).y.sum()

    text = jax.jit(jax.grad(loss)).trace(params, tokens).lower(lowering_platforms=("tpu",)).as_text()
    assert "sdy" in text or "sharding" in text


PLACED = LM(
    17, 16, (Stage((Block(GQA(n_heads=2, rope=None), MLP(d_hidden=24)),), 2),), learned_positions=True, head_bias=True,
    max_positions=12,
)  # fmt: skip


def test_learned_positions_and_a_bias_of_the_head():
    params = values(PLACED)
    assert params["positions"].shape == (12, 16) and params["head_bias"].shape == (17,)
    params["head_bias"] = jnp.arange(17.0)
    whole = logits(PLACED, params)
    # Rows that go on from a state, one of them after padding, stand at the same places.
    ids = jnp.asarray([[1] * 4, [1, 1, 0, 0]])
    first = apply_model(PLACED, params, TOKENS[:, :4], PLACED.init_state(2, 9), Ctx(segment_ids=ids))
    second = apply_model(PLACED, params, np.stack([TOKENS[0, 4:6], TOKENS[1, 2:4]]), first.state, Ctx())
    assert_close(second.y[0], whole[0, 4:6], 1e-5)
    assert_close(second.y[1], whole[1, 2:4], 1e-5)
    # A text's second half as a segment of its own counts from its own start.
    packed = Ctx(segment_ids=jnp.asarray([[1] * 4 + [2] * 5] * 2), positions=jnp.asarray([[*range(4), *range(5)]] * 2))
    alone = apply_model(PLACED, params, TOKENS[:, 4:], None, Ctx())
    assert_close(apply_model(PLACED, params, TOKENS, None, packed).y[:, 4:], alone.y, 1e-5)


def test_the_loss_reads_the_head_with_its_bias():
    params = values(PLACED)
    params["head_bias"] = jnp.linspace(-2, 2, 17)
    batch = {"tokens": TOKENS, "loss_mask": jnp.ones(TOKENS.shape), "segment_ids": jnp.ones(TOKENS.shape, jnp.int32)}
    batch["positions"] = jnp.broadcast_to(jnp.arange(9), TOKENS.shape)

    def ours(params):
        return Causal().sums(PLACED, params, batch)["loss"].total

    def plain(params):
        return cross_entropy_reference(PLACED.apply(params, TOKENS).y, next_tokens(TOKENS), batch["loss_mask"])

    ours, plain = (jax.jit(jax.value_and_grad(loss)) for loss in (ours, plain))
    assert_close(ours(params), plain(params), 1e-5)
    with pytest.raises(ValueError, match="max_positions"):
        dataclasses.replace(PLACED, max_positions=None)
