"""Small parts that every framework's tests wrap, with values for them, and what the bare forms give."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxeff
from jaxeff.mixers.registry import CHANNEL_MIXERS, MIXERS
from jaxeff.models import LM, Block, Stage

B, T, D, V = 2, 5, 16, 12
NAMES = tuple(MIXERS | CHANNEL_MIXERS)
ATTENTION, RECURRENCE = MIXERS["gqa"](D, n_heads=2), MIXERS["gla"](D, n_heads=2)
BLOCK = Block(RECURRENCE).bind(D)
MODEL = LM(V, D, (Stage((Block(ATTENTION), Block(RECURRENCE)), 2),))
WHOLES = {"block": BLOCK, "lm": MODEL}
X = np.random.default_rng(0).standard_normal((B, T, D)).astype(np.float32)
TOKENS = np.random.default_rng(1).integers(0, V, (B, T), np.int32)


def part_of(name: str):
    """A mixer of the registry, the block or the model."""
    return WHOLES.get(name) or (MIXERS | CHANNEL_MIXERS)[name](d_model=D)


def input_of(part) -> np.ndarray:
    """Tokens for a model, numbers for all else."""
    return TOKENS if isinstance(part, LM) else X


def values(part):
    """Parameters, none of them such that it drops out of a comparison; NumPy's, which compile nothing."""
    r = np.random.default_rng(2)
    return jax.tree.map(
        lambda spec: (0.3 * r.standard_normal(spec.shape)).astype(np.float32), jaxeff.abstract(part.specs())
    )


def output_and_gradients(apply, params, x):
    """y of `apply(params, x)`, and the gradients of sum(sin(y)) for the parameters."""

    def loss(params):
        y = apply(params, x)
        return jnp.sum(jnp.sin(y)), y

    gradients, y = jax.grad(loss, has_aux=True)(params)
    return y, gradients


@functools.partial(jax.jit, static_argnums=(0, 1))
def wrapped_and_bare(apply, part, params, x):
    """The same of two forms of a part, in one program."""
    bare = output_and_gradients(lambda params, x: part.apply(params, x).y, params, x)
    return output_and_gradients(apply, params, x), bare
