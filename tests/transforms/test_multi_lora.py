"""Several adapters in one batch against each of them alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.core.spec import Spec, init
from jaxeff.core.weight import dense, einsum
from jaxeff.mixers import GQA
from jaxeff.models import LM, Block, Stage
from jaxeff.transforms import Int8, LoRA, chain
from jaxeff.transforms.multi_lora import choose, only, together
from tests.closeness import assert_close

KEY = jax.random.key(0)
MODEL = LM(17, 16, (Stage((Block(GQA(n_heads=4, n_kv_heads=2)), "mamba2"), 2),))
RULES = (".*/mixer/(q|v|x|o)", "embed")


def adapted(i, rules=RULES):
    """The same quantized base with an adapter of its own, of its own rank and scale."""
    base = MODEL.specs()
    plan = chain(Int8((".*/mixer/(q|o)",)), LoRA(tuple((rule, 2 + i) for rule in rules), alpha=3.0 + i)).plan(base)
    params = plan.lift(init(base, KEY), jax.random.key(i))
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.1 * jax.random.normal(jax.random.key(i + 5), x.shape) if str(path[-1]) == ".b" else x,
        params,
    )


@pytest.fixture(scope="module")
def trees():
    return [adapted(i) for i in range(3)]


@pytest.fixture(scope="module")
def logits():
    return jax.jit(lambda params, tokens: MODEL.apply(params, tokens).y)


def test_each_example_has_the_adapter_that_was_chosen_for_it(trees, logits):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 17, (4, 7)), jnp.int32)
    ids = [2, 0, 1, 2]
    many = together(trees)
    found = logits(choose(many, jnp.asarray(ids)), tokens)
    for row, i in enumerate(ids):
        assert_close(found[row], logits(trees[i], tokens)[row], 1e-5)
        assert_close(found[row], logits(only(many, i), tokens)[row], 1e-5)
    assert not np.allclose(found[0], logits(trees[0], tokens)[0], atol=1e-3)


def test_gradients_reach_the_chosen_adapters_alone():
    specs = {"w": Spec((6, 2, 3), (None,) * 3)}
    values = init(specs, KEY)
    one = [LoRA((("w", 2),)).plan(specs).lift(values, jax.random.key(i)) for i in range(3)]
    x = jax.random.normal(KEY, (2, 5, 6))
    loss = lambda params: jnp.sum(jnp.sin(einsum("btd,dhc->bthc", x, params["w"])))
    gradient = jax.grad(lambda b: loss(choose(_with_b(together(one), b), jnp.array([2, 0]))))(together(one)["w"].b)
    assert np.any(gradient[0]) and np.any(gradient[2]) and not np.any(gradient[1])


def _with_b(params, b):
    return {"w": dataclasses.replace(params["w"], b=b)}


def test_what_cannot_be_is_said(trees):
    tokens = jnp.zeros((2, 3), jnp.int32)
    many = together(trees)
    with pytest.raises(UserError, match="no adapters are chosen: params = choose"):
        MODEL.apply(many, tokens)
    with pytest.raises(UserError, match="adapters are chosen for 3 examples, and the batch has 2"):
        MODEL.apply(choose(many, jnp.array([0, 1, 2])), tokens)
    with pytest.raises(UserError, match="there is no adapter 3: there are 3"):
        only(many, 3)
    with pytest.raises(UserError, match="needs a tree that together"):
        choose(trees[0], jnp.array([0, 1]))
    with pytest.raises(UserError, match="blocks/0/mixer/o is LoRAWeight and Int8Weight|is Int8Weight and LoRAWeight"):
        together([trees[0], adapted(1, (".*/mixer/(q|v|x)", "embed"))])
    other = dict(trees[1], norm={"scale": 2 * trees[1]["norm"]["scale"]})
    with pytest.raises(UserError, match="trees 0 and 1 are for other bases: norm/scale differs"):
        together([trees[0], other])
    with pytest.raises(UserError, match="several adapters are no one matrix"):
        dense(many["embed"], jnp.float32)
