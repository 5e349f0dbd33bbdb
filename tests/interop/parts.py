"""Small parts that every framework's tests wrap, with values for them, and what the bare forms give."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

import jaxeff
from jaxeff.mixers.registry import CHANNEL_MIXERS, MIXERS
from jaxeff.models import LM, Block, Stage
from tests.closeness import assert_close

B, T, D, V = 2, 5, 16, 12
NAMES = tuple(MIXERS | CHANNEL_MIXERS)
ATTENTION, RECURRENCE = MIXERS["gqa"](D, n_heads=2), MIXERS["linear"](D, n_heads=2)
BLOCK = Block(RECURRENCE).bind(D)
MODEL = LM(V, D, (Stage((Block(ATTENTION, None), Block(RECURRENCE)), 2),))
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
    return numbers(jaxeff.abstract(part.specs()))


def numbers(shapes):
    """Random values for a tree of shapes."""
    r = np.random.default_rng(2)
    return jax.tree.map(lambda spec: (0.3 * r.standard_normal(spec.shape)).astype(np.float32), shapes)


def output_and_gradients(apply, params, x):
    """y of `apply(params, x)`, and the gradients of sum(sin(y)) for the parameters."""

    def loss(params):
        y = apply(params, x)
        return jnp.sum(jnp.sin(y)), y

    gradients, y = jax.grad(loss, has_aux=True)(params)
    return y, gradients


def bare(part):
    """The form without a framework, as `apply(params, x)`."""
    return lambda params, x: part.apply(params, x).y


def program(apply, part):
    """`apply(params, x)`, traced: (its text, without addresses in memory; its constants)."""
    traced = jax.make_jaxpr(apply)(values(part), input_of(part))
    return re.sub(" at 0x[0-9a-f]+", "", str(traced.jaxpr)), traced.consts


@functools.cache
def bare_program(part):
    """That of the bare form, which every framework's is compared with."""
    return program(bare(part), part)


def assert_agrees(apply, part, tolerance: float):
    """Output and gradients of `apply(params, x)` are those of the bare form: it is the same program, letter by letter and with the
    same constants, or else gives the same numbers. What is the same need be neither differentiated nor compiled."""
    (ours, constants), (theirs, their_constants) = bare_program(part), program(apply, part)
    if ours == theirs:
        assert_close(their_constants, constants, 0)
    else:
        params, x = values(part), input_of(part)
        found, expected = (jax.jit(functools.partial(output_and_gradients, f))(params, x) for f in (apply, bare(part)))
        assert_close(found, expected, tolerance)
