"""Compiled entry points that tests share: one compilation per mixer or model, shape and structure."""

import functools

import jax

import jaxeff


def values(layer, key):
    """Initial parameters of a mixer or model."""
    return jaxeff.init(layer.specs(), key)


@functools.partial(jax.jit, static_argnums=0)
def apply_mixer(mixer, params, x_BTD, state, ctx):
    return mixer.apply(params, x_BTD, state, ctx=ctx)


@functools.partial(jax.jit, static_argnums=0)
def apply_model(lm, params, tokens_BT, state, ctx):
    return lm.apply(params, tokens_BT, state, ctx=ctx)
