"""Long texts in pieces: several pieces are the reference scan too, with every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.target import lowering_for
from jaxeff.ops import pieces
from tests.ops import test_delta_rule as delta
from tests.ops import test_gated_linear as gated

T, CHUNK = 43, 8  # six pieces of one chunk, the last one filled up; lengths that no other test of these files compiles


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(pieces, "CACHED", 1)
    assert pieces.piece(256, T, CHUNK) == CHUNK


@pytest.mark.parametrize("kind", ["delta", "scalar", "vector"])
def test_delta_rule(short, kind):
    a, resets = delta.arrays(T, kind), delta.resets(T)
    loops = str(jax.make_jaxpr(lambda a: delta.call(delta.fast_form(CHUNK), a, resets))(a))
    assert "length=6" in loops and "length=1" in loops  # the pieces, and the chunks of one
    delta.compare(a, resets, chunk=CHUNK)


@pytest.mark.parametrize("kind", ["none", "scalar", "vector"])
def test_gated_linear(short, kind):
    a = gated.arrays(T, kind, H=4, G=2)
    gated.compare(a, jnp.asarray(np.random.default_rng(2).uniform(size=(gated.B, T)) < 0.1), chunk=CHUNK)
    gated.compare(a, chunk=CHUNK)


def test_a_piece_fills_the_cache_of_a_cpu_and_is_all_elsewhere():
    assert pieces.piece(256, 4096, 32) == 256 and pieces.piece(10**9, 4096, 32) == 32
    with lowering_for("tpu"):
        assert pieces.piece(256, 4096, 32) == 4096
