import dataclasses

import jax
import jax.numpy as jnp
import pytest

import jaxeff
from jaxeff.mixers import GQA, MLP, Ctx, SlidingWindow
from jaxeff.models import LM, Block, Segment
from tests.compiled import apply_model, values

KEY = jax.random.key(0)
TOKENS = jax.random.randint(jax.random.key(1), (2, 9), 0, 17)
SMALL = LM(17, d_model=16, pattern=(Block(GQA(n_heads=2), MLP(d_hidden=24)), "linear"), repeats=2)


def logits(lm, params=None):
    return apply_model(lm, values(lm, KEY) if params is None else params, TOKENS, None, Ctx())[0]


def test_paths_and_stacking():
    specs = SMALL.specs()
    assert specs["blocks"]["0"]["mixer"]["q"].shape == (2, 16, 2, 8)
    assert set(specs["blocks"]) == {"0", "1"} and SMALL.n_layers == 4 and "head" not in specs


def test_scan_is_the_unrolled_model():
    params = values(SMALL, KEY)
    unrolled = dataclasses.replace(SMALL, scan=False)

    def loss(lm, params):
        return jnp.sum(jnp.sin(lm.apply(params, TOKENS)[0]))

    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=0)
    ours = value_and_grad(SMALL, params)
    for lm in (unrolled, dataclasses.replace(SMALL, remat="full"), dataclasses.replace(SMALL, remat="dots")):
        theirs = value_and_grad(lm, params)
        close = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), ours, theirs)
        assert max(jax.tree.leaves(close)) < 2e-5


@pytest.mark.parametrize("lm", [SMALL, LM(17, 16, ("window",), 1, more=(Segment(("gqa", "window"), 2),), tied=False)])
def test_decoding_is_the_whole_forward(lm):
    params = values(lm, KEY)
    whole = logits(lm, params)
    state = lm.init_state(2, 9)
    for t in range(9):
        piece, state = apply_model(lm, params, TOKENS[:, t : t + 1], state, Ctx())
        assert jnp.max(jnp.abs(piece[:, 0] - whole[:, t])) < 2e-5


@pytest.mark.parametrize(
    "change",
    [
        dict(tied=False), dict(embed_scale="sqrt"), dict(embed_scale=2.0), dict(softcap=0.1), dict(norm="layer"),
        dict(pattern=(Block(GQA(n_heads=2), placement="post"),)), dict(pattern=(Block(GQA(n_heads=2), placement="sandwich"),)),
        dict(pattern=(Block(GQA(n_heads=2), parallel=True),)), dict(pattern=(Block(GQA(n_heads=2), mlp=None),)),
        dict(pattern=(Block(GQA(n_heads=2), norm="layer"),)),
    ],
    ids=["untied", "sqrt", "scaled", "softcap", "layernorm", "post", "sandwich", "parallel", "no-mlp", "block-layernorm"],
)  # fmt: skip
def test_options_give_a_finite_and_different_model(change):
    base = LM(17, d_model=16, pattern=(Block(GQA(n_heads=2)),), repeats=2)
    ours, theirs = logits(base), logits(dataclasses.replace(base, **change))
    assert jnp.all(jnp.isfinite(theirs))
    # At init a post-norm or LayerNorm model may stay near, never equal.
    assert jnp.max(jnp.abs(ours - theirs)) > 1e-6


def test_soft_cap_bounds_the_logits():
    lm = dataclasses.replace(SMALL, softcap=0.05)
    assert jnp.max(jnp.abs(logits(lm))) <= 0.05


def test_bfloat16_compute():
    params = values(SMALL, KEY)
    x, _ = SMALL.hidden(params, TOKENS, ctx=Ctx(policy=jaxeff.core.precision.POLICIES["bfloat16"]))
    assert x.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LM(17, 16, ("gqaa",)), "no mixer is called 'gqaa'; did you mean 'gqa'"),
        (lambda: LM(17, 16, (Block(GQA(32)),)), r"GQA\(d_model=32\) cannot stand in a model of d_model=16"),
        (lambda: LM(0), "vocab_size must be at least 1"),
        (lambda: LM(17, remat="fulll"), "no remat policy is called 'fulll'; did you mean 'full'"),
        (lambda: Block(GQA(), norm="rsm"), "Block.norm must be 'rms' or 'layer'"),
        (lambda: Block(GQA(), placement="before"), "Block.placement"),
    ],
)
def test_impossible_models_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_models_are_values():
    assert SMALL == dataclasses.replace(SMALL) and hash(SMALL) == hash(dataclasses.replace(SMALL))
    assert LM(17, 16, ("window",)) == LM(17, 16, ("window",)) != LM(17, 16, (Block(SlidingWindow()),), repeats=5)


@pytest.mark.parametrize("shape", [dict(data=2, tensor=2), dict(fsdp=4), dict(data=2, sequence=2)], ids=str)
def test_sharded_is_unsharded(shape):
    mesh = jaxeff.make_mesh(**shape)
    tokens = jnp.concatenate([TOKENS, TOKENS])[:, :8]
    params = values(SMALL, KEY)
    plain = apply_model(SMALL, params, tokens, None, Ctx())[0]
    placed = jax.device_put(params, jaxeff.shardings(SMALL.specs(), mesh))
    tokens = jax.device_put(tokens, jaxeff.core.sharding.batch_sharding(mesh))
    sharded = apply_model(SMALL, placed, tokens, None, Ctx(mesh=mesh))[0]
    assert jnp.max(jnp.abs(jax.device_get(sharded) - jax.device_get(plain))) < 1e-5


def test_a_step_lowers_for_a_mesh_that_does_not_exist():
    mesh = jax.sharding.AbstractMesh((16, 1, 2, 1), ("data", "fsdp", "tensor", "sequence"))
    specs = SMALL.specs()
    params = jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        jaxeff.abstract(specs), jaxeff.shardings(specs, mesh),
    )  # fmt: skip
    tokens = jax.ShapeDtypeStruct((32, 8), jnp.int32)

    def loss(params, tokens):
        return SMALL.apply(params, tokens, None, Ctx(mesh=mesh))[0].sum()

    text = jax.jit(jax.grad(loss)).trace(params, tokens).lower(lowering_platforms=("tpu",)).as_text()
    assert "sdy" in text or "sharding" in text
