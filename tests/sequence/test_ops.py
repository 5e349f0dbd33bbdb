"""What a slice of a text makes of a state is summed up so that summaries of slices that follow each other join to the one of both,
in any bracketing. B batch, T time, H heads, C key channels, E value channels, D channels, N state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core import sequence
from jaxeff.ops.conv import causal_conv
from jaxeff.ops.delta_rule import delta_rule
from jaxeff.ops.diagonal_scan import diagonal_scan
from jaxeff.ops.gated_linear import gated_linear
from jaxeff.ops.segments import tokens, zero_padding
from jaxeff.ops.selective_scan import selective_scan
from jaxeff.ops.wkv import wkv

B, T, H, C, E, D, N = 4, 12, 2, 3, 2, 5, 3
SLICES = slice(0, 4), slice(4, 8), slice(8, 12)
SEGMENTS = np.array([
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],  # nothing starts
    [1, 1, 2, 2, 2, 2, 2, 2, 3, 4, 4, 4],  # starts within a slice and at an edge
    [1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0],  # whole slices of padding
    [0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 0, 0],
], np.int32)  # fmt: skip


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def gates(seed, *shape):
    """log a, between 0 and -1."""
    return -jax.random.uniform(jax.random.key(seed), shape)


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


# What each op is called with: numbers for each token, zero at padding, and others.
TOKENS = {
    "diagonal_scan": dict(log_a=gates(0, B, T, D), x=normal(1, B, T, D)),
    "selective_scan": dict(x=normal(0, B, T, D), dt=-gates(1, B, T, D), b=normal(2, B, T, N), c=normal(3, B, T, N)),
    "wkv": dict(k=normal(0, B, T, D), v=normal(1, B, T, D)),
    "delta_rule": dict(
        q=normal(0, B, T, H, C), k=normal(1, B, T, H, C), v=normal(2, B, T, H, E), log_a=gates(3, B, T, H, C),
        u=-unit(normal(4, B, T, H, C)), w=unit(normal(4, B, T, H, C)),
    ),
    "gated_linear": dict(
        q=normal(0, B, T, H, C), k=normal(1, B, T, H, C), v=normal(2, B, T, H, E), log_a=gates(3, B, T, H, C)
    ),
    "causal_conv": dict(x=normal(0, B, T, D)),
}  # fmt: skip
CALLS = {
    "diagonal_scan": lambda log_a, x, start, valid: diagonal_scan(log_a, x, None, start),
    "selective_scan": lambda x, dt, b, c, start, valid: selective_scan(x, dt, gates(4, D, N), b, c, None, start),
    "wkv": lambda k, v, start, valid: wkv(k, v, gates(2, D), normal(3, D), None, start, valid),
    "delta_rule": lambda q, k, v, u, w, log_a, start, valid: delta_rule(q, k, v, u, w, log_a, None, start),
    "gated_linear": lambda q, k, v, log_a, start, valid: gated_linear(q, k, v, log_a, None, start),
    "causal_conv": lambda x, start, valid: causal_conv(x, normal(1, 3, D), None, None, valid, start),
}


@pytest.mark.parametrize("name", CALLS)
def test_summaries_of_slices_join_to_that_of_the_text(name, monkeypatch):
    found, _ = tokens((B, T), jnp.asarray(SEGMENTS))
    text = {key: zero_padding(x, found.valid) for key, x in TOKENS[name].items()}
    text |= dict(start=found.start, valid=found.valid)

    exchanged = []

    def before(summary, join, nothing):
        exchanged.append((summary, join, nothing))
        return nothing

    monkeypatch.setattr(sequence, "sliced", lambda: True)
    monkeypatch.setattr(sequence, "before", before)
    monkeypatch.setattr(sequence, "last", lambda x: x)

    @jax.jit
    def joined(text):
        for part in (*SLICES, slice(0, T)):
            CALLS[name](**{key: x[:, part] for key, x in text.items()})
        (first, second, third, whole), (join, *_), (nothing, *_) = zip(*exchanged, strict=True)
        edges = join(nothing, first), join(first, nothing)
        return first, edges, whole, (join(join(first, second), third), join(first, join(second, third)))

    first, edges, whole, bracketings = joined(text)
    for summary in edges:
        same(summary, first)
    for summary in bracketings:
        same(summary, whole)


def same(found, expected):
    """float32 of sums of a dozen numbers; exponents of empty sums are as large as numbers can be."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), found, expected)
