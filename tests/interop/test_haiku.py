"""Mixers, blocks and models as Haiku modules. B batch, T time, D model."""

import dataclasses
import runpy
import subprocess
import sys

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.core.spec import init
from jaxeff.core.tree import paths
from jaxeff.interop.haiku import as_haiku, nested
from jaxeff.mixers.base import Ctx
from jaxeff.models import LM, Block, Stage
from tests.closeness import assert_close
from tests.compiled import apply_mixer
from tests.documented import ROOT
from tests.interop.parts import (
    ATTENTION,
    BLOCK,
    NAMES,
    TOKENS,
    WHOLES,
    B,
    D,
    T,
    V,
    X,
    assert_agrees,
    input_of,
    numbers,
    part_of,
    values,
)

KEY = jax.random.key(0)
FIRST = next(hk.PRNGSequence(KEY))  # what the first module of `f.init(KEY, x)` draws


def transformed(part, **settings):
    return hk.without_apply_rng(hk.transform(lambda x: as_haiku(part, "part", **settings)(x)))


def module_params(params):
    """A nested tree as the parameters of the module that is called `part`."""
    return {"part": paths(params)}


@pytest.mark.parametrize("name", [*NAMES, *WHOLES])
def test_it_agrees_with_the_bare_part(name):
    """Names, shapes, outputs and gradients."""
    part, x = part_of(name), input_of(part_of(name))
    f, params = transformed(part), values(part)
    made = jax.eval_shape(f.init, KEY, x)
    assert made == jax.eval_shape(module_params, params) and nested(part, made["part"]).keys() == params.keys()
    assert_agrees(lambda params, x: f.apply(module_params(params), x), part, 2e-5)


def test_initial_values_are_ours():
    part = LM(V, D, (Stage((Block(ATTENTION, None),), 2),))
    found = jax.jit(transformed(part).init)(KEY, TOKENS)
    assert_close(nested(part, found["part"]), init(part.specs(), FIRST), 1e-6)


@pytest.mark.parametrize("name", ["gqa", "rwkv4_channel", "mlp", "lm"])
def test_steps_equal_the_whole(name):
    part, x = part_of(name), input_of(part_of(name))
    f = hk.transform_with_state(lambda x: as_haiku(part, "part", decode=True, max_len=T)(x))
    params, empty = module_params(values(part)), jax.jit(lambda x: f.init(KEY, x)[1])(x[:, :1])
    step, whole = jax.jit(f.apply), jax.jit(transformed(part).apply)(params, x)
    assert_close(dict(empty.get("part", {})), paths(part.init_state(B, T, jnp.float32)), 0.0)
    first, state = step(params, empty, None, x[:, :2])
    assert_close(first, whole[:, :2], 2e-5)
    for t in range(2, T):
        y, state = step(params, state, None, x[:, t : t + 1])
        assert_close(y[:, 0], whole[:, t], 2e-5)


def test_decoding_in_a_scan():
    """`hk.scan` carries the state that Haiku keeps."""

    def decoded(x_BTD):
        layer = as_haiku(ATTENTION, "part", decode=True, max_len=T)
        _, y_TBD = hk.scan(lambda carry, x_BD: (carry, layer(x_BD[:, None])[:, 0]), 0, jnp.swapaxes(x_BTD, 0, 1))
        return jnp.swapaxes(y_TBD, 0, 1)

    f = hk.transform_with_state(decoded)
    params, empty = module_params(values(ATTENTION)), jax.jit(lambda x: f.init(KEY, x)[1])(X)
    y, _ = jax.jit(f.apply)(params, empty, None, X)
    assert_close(y, jax.jit(transformed(ATTENTION).apply)(params, X), 2e-5)


def test_rematerialised_and_stacked():
    f, plain = (
        hk.transform(lambda x, wrap=wrap: hk.experimental.layer_stack(2)(lambda x: wrap(as_haiku(BLOCK))(x))(x))
        for wrap in (hk.remat, lambda f: f)
    )
    params = numbers(jax.eval_shape(f.init, KEY, X))
    (module,) = params
    assert {leaf.shape[0] for leaf in params[module].values()} == {2}
    grads = [
        jax.jit(jax.grad(lambda params, g=g: jnp.sum(jnp.sin(g.apply(params, None, X)))))(params) for g in (f, plain)
    ]
    assert_close(*grads, 2e-5)


def test_names_of_two_in_a_module():
    class Two(hk.Module):
        def __call__(self, x):
            x = x + as_haiku(ATTENTION)(x)
            return x + as_haiku(ATTENTION)(x) + as_haiku(BLOCK, "last")(x)

    f = hk.transform(lambda x: Two()(x))
    params = jax.eval_shape(f.init, KEY, X)
    assert params.keys() == {"two/gqa", "two/gqa_1", "two/last"} and "mixer/q" in params["two/last"]
    one, other = jax.jit(lambda x: [f.init(KEY, x)[name]["q"] for name in ("two/gqa", "two/gqa_1")])(X)
    assert not np.allclose(one, other)


def test_dropout_follows_the_key():
    part = dataclasses.replace(BLOCK, dropout=0.5)
    f = hk.transform(lambda x, is_training: as_haiku(part, "part")(x, is_training=is_training))
    params, apply = module_params(values(part)), jax.jit(f.apply, static_argnums=3)
    one, other = (apply(params, jax.random.key(i), X, True) for i in (1, 2))
    assert not np.allclose(one, other)
    assert_close(apply(params, None, X, False), jax.jit(transformed(BLOCK).apply)(params, X), 1e-5)


def test_a_state_in_the_callers_care():
    f = hk.without_apply_rng(hk.transform(lambda x, state, ctx: as_haiku(BLOCK, "part").out(x, state, ctx=ctx)))
    state = BLOCK.init_state(B, T, jnp.float32)
    params, ctx = values(BLOCK), Ctx(segment_ids=jnp.ones((B, T), jnp.int32))
    found = jax.jit(f.apply)(module_params(params), X, state, ctx)
    assert_close(found, apply_mixer(BLOCK, params, X, state, ctx), 1e-5)


def test_errors():
    with pytest.raises(UserError, match="give both or none"):
        as_haiku(BLOCK, decode=True)
    f = hk.transform_with_state(lambda x, state: as_haiku(BLOCK, decode=True, max_len=T).out(x, state).y)
    with pytest.raises(UserError, match="block keeps its decode state"):
        f.init(KEY, X, BLOCK.init_state(B, T, jnp.float32))


def test_without_haiku():
    code = "import sys; sys.modules['haiku'] = None; import jaxeff.interop.haiku"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.strip().endswith("UserError: jaxeff.interop.haiku needs Haiku: pip install 'jaxeff[haiku]'")


def test_the_documented_script():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = runpy.run_path(str(ROOT / "docs/interop/with_haiku.py"))
    assert found["losses"][-1] < found["losses"][0] / 2
    assert found["adapted"][-1] < found["adapted"][0] - 1e-3
    assert found["text"] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]
