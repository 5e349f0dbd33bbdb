import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.ops.norm import layer_norm, rms_norm
from tests.closeness import assert_close

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (2, 3, 4, 8)) * 3 + 1
SCALE, BIAS = jax.random.normal(jax.random.key(1), (2, 8))


def by_hand(x, scale, bias, centre, eps):
    x = np.asarray(x, np.float64)
    if centre:
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * np.asarray(scale) + np.asarray(bias)


def test_against_float64():
    assert_close(rms_norm(X, SCALE, eps=0.1), by_hand(X, SCALE, 0.0, False, 0.1), 1e-6)
    assert_close(layer_norm(X, SCALE, BIAS, eps=0.1), by_hand(X, SCALE, BIAS, True, 0.1), 1e-6)
    assert_close(rms_norm(X), by_hand(X, 1.0, 0.0, False, 1e-6), 1e-6)


def test_a_scale_per_head():
    scale_HC = jnp.arange(32.0).reshape(4, 8)
    assert_close(rms_norm(X, scale_HC), rms_norm(X) * scale_HC[None, None], 1e-6)


@pytest.mark.parametrize("f", [rms_norm, layer_norm])
def test_over_axes_that_are_not_last(f):
    moved = f(jnp.moveaxis(X, 1, -1), SCALE[:, None], axes=(-2,))
    assert_close(jnp.moveaxis(moved, -1, 1), f(X, SCALE), 1e-6)


def test_a_large_mean_does_not_cancel():
    # With mean(x^2) - mean(x)^2 a variance of 1 beside a mean of 3000 keeps no digit; the mean's own rounding is 2e-4.
    x = jax.random.normal(KEY, (16, 64)) + 3000.0
    assert_close(layer_norm(x), by_hand(x, 1.0, 0.0, True, 1e-5), 5e-4)


@pytest.mark.parametrize("f", [rms_norm, layer_norm])
def test_low_precision_input_is_computed_in_float32(f):
    x = (X * 300).astype(jnp.float16)  # its squares overflow float16
    y = f(x, SCALE)
    assert y.dtype == jnp.float16
    assert_close(y, f(x.astype(jnp.float32), SCALE), 2**-11)


def test_zeros_have_finite_gradients():
    gradient = jax.grad(lambda x: jnp.sum(rms_norm(x) + layer_norm(x)))(jnp.zeros((2, 8)))
    assert jnp.all(jnp.isfinite(gradient))
