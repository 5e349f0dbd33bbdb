"""The delta rule in 16-bit products, on this machine, against the reference in float32 on the same rounded numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.target import lowering_for
from jaxeff.ops import delta_rule as delta
from jaxeff.ops.delta_rule import delta_rule, delta_rule_reference
from jaxeff.ops.delta_sums import by_sums, unit_inverse
from tests.closeness import assert_close
from tests.ops.test_delta_rule import B, arrays, call, values_and_gradients

NAMES = ("q", "k", "v", "u", "w")
# Factors keep 8 bits, and what is read of the state has passed four of them; reflections (negative) let no error fade.
# Gradients pass twice as many.
VALUES, GRADIENTS = 1.2e-2, 2.4e-2


def rounded(T, kind, **options):
    a = arrays(T, kind, **options)
    return a | {name: a[name].astype(jnp.bfloat16) for name in NAMES}


@functools.partial(jax.jit, static_argnums=0)
def in_half(kind, a, reset_BT, weights):
    """`values_and_gradients` as a matrix unit would; `kind` keeps programs of other chunks apart."""
    with lowering_for("tpu"):
        return values_and_gradients.__wrapped__(delta_rule, a, reset_BT, weights)


def compare(a, reset_BT=None):
    weights = arrays(a["q"].shape[1], "delta", seed=1, C=a["q"].shape[-1])
    fast = in_half(delta.UNIT, a, reset_BT, weights)
    assert fast["o"].dtype == jnp.bfloat16 and fast["state"].dtype == jnp.float32
    wide = {name: x.astype(jnp.float32) for name, x in a.items()}
    slow = values_and_gradients(delta_rule_reference, wide, reset_BT, weights)
    gradient, expected = fast.pop("gradient"), slow.pop("gradient")
    assert_close(fast, slow, VALUES)
    assert_close(gradient, expected, GRADIENTS)


def resets_at(T, *places):
    return jnp.zeros((B, T), bool).at[:, list(places)].set(True)


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of 32, so that a short text has some and ends within one."""
    monkeypatch.setattr(delta, "UNIT", 32)


@pytest.mark.parametrize("kind", ["delta", "negative", "scalar"])
def test_is_the_reference(kind, short_chunks):
    a = rounded(70, kind)
    compare(a)
    compare(a, resets_at(70, 0, 9, 31, 32, 40, 69))


@pytest.mark.parametrize("T", [2, 3, 29])
def test_of_a_text_shorter_than_a_chunk(T):
    compare(rounded(T, "scalar"))


@pytest.mark.parametrize("log_a", [-1e-3, -59.0, -1e30, -jnp.inf])
def test_with_weak_strong_and_zero_gates(log_a, short_chunks):
    a = rounded(70, "scalar")
    compare(a | {"log_a": a["log_a"].at[:, 5:40:3].set(log_a)}, resets_at(70, 9))


@pytest.mark.parametrize("size", [1, 2, 7, 16, 33])
def test_the_inverse_is_one_and_so_is_its_gradient(size):
    A = jnp.tril(jax.random.normal(jax.random.key(0), (3, size, size)), -1)
    weights = jax.random.normal(jax.random.key(1), A.shape)
    X, back = jax.vjp(unit_inverse, A)
    exact = np.linalg.inv(np.eye(size) - np.asarray(A, np.float64))
    turned = exact.swapaxes(-1, -2)
    assert_close(X, exact, 1e-5)
    assert_close(jnp.tril(back(weights)[0], -1), np.tril(turned @ np.asarray(weights, np.float64) @ turned, -1), 1e-5)


def test_the_inverse_keeps_its_digits_where_powers_lose_them():
    A = -2 * jnp.tril(jnp.ones((1, 128, 128)), -1)  # powers reach 1e37; the inverse has entries of size 2
    assert_close(unit_inverse(A), np.linalg.inv(np.eye(128) - np.asarray(A, np.float64)), 1e-6)


def test_only_away_from_cpus_for_16_bit_values_and_one_gate_a_head(monkeypatch):
    calls = []

    def spy(*args, **options):
        calls.append(1)
        return by_sums(*args, **options)

    monkeypatch.setattr(delta, "by_sums", spy)
    for name, a, expected in [
        ("tpu", rounded(40, "scalar"), 1),
        ("gpu", rounded(40, "delta"), 1),
        ("cpu", rounded(40, "scalar"), 0),
        ("tpu", arrays(40, "scalar"), 0),
        ("tpu", rounded(40, "vector"), 0),
    ]:
        calls.clear()
        with lowering_for(name):
            jax.eval_shape(lambda a: call(delta_rule, a), a)
        assert len(calls) == expected
