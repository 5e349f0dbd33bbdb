"""Every mixer on texts cut into slices over four devices, against the same on one. B batch, T time, D model.

Rows hold several texts that start and end anywhere, padding, and a row that is padding from the middle of the first slice on.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.sharding import make_mesh
from jaxeff.mixers.base import Ctx
from jaxeff.mixers.sliced import apply_sliced
from tests.closeness import assert_close
from tests.contracts.test_mixers import CASES, SMALL, initial, noisy

SLICES, B, T = 4, 4, 96
# Two orders of summation of the same numbers; gradients pass the recurrence twice.
OUTPUTS, GRADIENTS = 1e-5, 1e-4


def segments() -> np.ndarray:
    ids = np.zeros((B, T), np.int32)
    ids[0] = 1  # one text, through all slices
    ids[1, :30], ids[1, 30:31], ids[1, 31:72], ids[1, 72:] = (
        1,
        2,
        3,
        4,
    )  # starts within slices, within reach of a convolution, at an edge
    ids[2, :13] = 1
    ids[3, :49], ids[3, 49:90] = 5, 6
    return ids


def alone(mixer):
    """The mixer as it is on one device, where no slices meet: one program for all ways in which they would."""
    return dataclasses.replace(mixer, context="gather") if getattr(mixer, "context", None) == "ring" else mixer


def normal(shape, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def arguments(mixer, texts: bool):
    """Of NumPy, which compiles nothing. Biases and gates that start at zero would hide what they do."""
    x_BTD, params = normal((B, T, mixer.d_model), 1), noisy(initial(mixer))
    ctx = Ctx(segment_ids=segments()) if texts else Ctx()
    if name := next(iter(getattr(mixer, "reads", ())), None):
        written = jax.eval_shape(mixer.apply, params, x_BTD).shared[name]
        ctx = ctx.sharing({name: normal(written.shape, 2)})
    return params, x_BTD, ctx


@functools.partial(jax.jit, static_argnums=0)
def state_of(mixer, params):
    """After some tokens, one by one, so that the first slice goes on from something."""
    step = lambda state, x_BD: (mixer.apply(params, x_BD[:, None], state).state, None)
    return jax.lax.scan(step, mixer.init_state(B, T + 7, jnp.float32), normal((7, B, mixer.d_model), 3))[0]


def matters(ctx):
    """1.0 where there is text."""
    return 1.0 if ctx.segment_ids is None else (ctx.segment_ids != 0)[..., None].astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 4))
def outputs(mixer, params, x_BTD, ctx, mesh, state):
    """(outputs where there is text, state after them)."""
    ctx = dataclasses.replace(ctx, mesh=mesh)
    out = apply_sliced(mixer, params, x_BTD, state, ctx)
    return jnp.where(matters(ctx) != 0, out.y, 0.0), out.state


@functools.partial(jax.jit, static_argnums=(0, 4))
def run(mixer, params, x_BTD, ctx, mesh, state):
    """(outputs, state after them, gradients with respect to parameters, input and state)."""
    ctx = dataclasses.replace(ctx, mesh=mesh)

    def loss(params, x_BTD, state):
        out = apply_sliced(mixer, params, x_BTD, state, ctx)
        floats = [leaf for leaf in jax.tree.leaves(out.state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        total = jnp.sum(jnp.sin(out.y * matters(ctx))) + sum((jnp.sum(jnp.sin(leaf)) for leaf in floats), 0.0)
        return total, (out.y * matters(ctx), out.state)

    (_, out), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True, allow_int=True)(params, x_BTD, state)
    return out, jax.tree.map(lambda g: g if jnp.issubdtype(g.dtype, jnp.floating) else None, gradients)


def ring(name: str, **sizes):
    return dataclasses.replace(CASES[name], context="ring", **sizes)


# The windows end within a slice, and reach over more than one, to some slices only.
CASES = CASES | {
    "gqa/ring": ring("gqa"),
    "gqa/options, ring": ring("gqa/options"),
    "mqa/ring": ring("mqa"),
    "window/ring": ring("window"),
    "window/40": dataclasses.replace(CASES["window"], window=(39, 0)),
    "window/40, ring": ring("window", window=(39, 0)),
    "window/ahead": dataclasses.replace(CASES["gqa"], causal=False, window=(5, 30)),
    "gqa/full": dataclasses.replace(CASES["gqa"], causal=False),
    "gqa/full, ring": ring("gqa", causal=False),
}


# Variants whose difference does not touch time are compared once, where they go on; what looks ahead cannot.
TRAINED = [name for name in CASES if name not in SMALL or "/" not in name]
AHEAD = {"window/ahead", "gqa/full", "gqa/full, ring"}
GOING_ON = [name for name in CASES if name not in AHEAD]


@pytest.mark.parametrize("name", TRAINED)
def test_training_in_slices(name):
    """Several texts in a row, from no state."""
    mixer, mesh = CASES[name], make_mesh(sequence=SLICES)
    params, x_BTD, ctx = arguments(alone(mixer), texts=True)
    (y, _), gradients = run(alone(mixer), params, x_BTD, ctx, None, None)
    (sliced_y, _), sliced_gradients = run(mixer, params, x_BTD, ctx, mesh, None)
    assert_close(sliced_y, y, OUTPUTS, "y")
    assert_close(sliced_gradients, gradients, GRADIENTS, "gradient")


@pytest.mark.parametrize("name", GOING_ON)
def test_going_on_from_a_state_in_slices(name):
    mixer, mesh = CASES[name], make_mesh(sequence=SLICES)
    params, x_BTD, ctx = arguments(alone(mixer), texts=True)
    state = state_of(alone(mixer), params)
    y, after = outputs(alone(mixer), params, x_BTD, ctx, None, state)
    sliced_y, sliced_after = outputs(mixer, params, x_BTD, ctx, mesh, state)
    assert_close(sliced_y, y, OUTPUTS, "y")
    assert_close(sliced_after, after, OUTPUTS, "state")


@pytest.mark.parametrize("name", ["gqa", "gqa/ring", "window/ring", "gla", "mamba", "rglru", "rwkv4", "deltanet"])
def test_one_text_and_gradients_of_the_state_it_goes_on_from(name):
    mixer, mesh = CASES[name], make_mesh(sequence=SLICES)
    params, x_BTD, ctx = arguments(alone(mixer), texts=False)
    state = state_of(alone(mixer), params)
    (y, after), gradients = run(alone(mixer), params, x_BTD, ctx, None, state)
    (sliced_y, sliced_after), sliced_gradients = run(mixer, params, x_BTD, ctx, mesh, state)
    assert_close(sliced_y, y, OUTPUTS, "y")
    assert_close(sliced_after, after, OUTPUTS, "state")
    assert_close(sliced_gradients, gradients, GRADIENTS, "gradient")
