import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.target import lowering_for
from jaxeff.ops.rope import Linear, Llama3, Rope, Yarn, cos_sin, rope
from tests.closeness import assert_close

KEY = jax.random.key(0)
Q, K = jax.random.normal(KEY, (2, 1, 6, 2, 16))
POSITIONS = jnp.arange(6, dtype=jnp.int32)[None]


def test_pairs_turn_as_complex_numbers():
    turned = np.asarray(rope(Q, POSITIONS, Rope(base=100.0)))
    frequency = 100.0 ** (-np.arange(8) / 8)
    phase = np.exp(1j * np.asarray(POSITIONS)[:, :, None, None] * frequency)
    expected = (np.asarray(Q[..., :8]) + 1j * np.asarray(Q[..., 8:])) * phase
    assert_close(turned, np.concatenate([expected.real, expected.imag], -1), 1e-6)


@pytest.mark.parametrize("scaling", [None, Linear(4.0), Llama3(8.0, 1.0, 4.0, 64), Yarn(4.0, 64)])
def test_scores_depend_on_distance_alone(scaling):
    turn = lambda x, start: rope(x, POSITIONS + start, Rope(scaling=scaling))
    scores = lambda start: jnp.einsum("bthc,bshc->bhts", turn(Q, start), turn(K, start))
    # Angles up to 1000 carry an error of 1000 * 2^-24 = 6e-5 in float32, of the fastest channels only.
    assert_close(scores(1000), scores(0), 6e-5)


def test_partial_width_leaves_the_rest():
    turned = rope(Q, POSITIONS, Rope(fraction=0.25))
    assert jnp.array_equal(turned[..., 4:], Q[..., 4:])
    assert jnp.array_equal(turned[..., :4], rope(Q[..., :4], POSITIONS, Rope()))


def test_linear_scaling_divides_positions():
    assert_close(rope(Q, POSITIONS * 4, Rope(scaling=Linear(4.0))), rope(Q, POSITIONS, Rope()), 1e-6)


def test_angles_are_float32_whatever_the_input():
    # bfloat16 has no 1001: the rotation by 1001 would be that by 1000.
    far = jnp.full((1, 6), 1001, jnp.int32)
    low = rope(Q.astype(jnp.bfloat16), far, Rope())
    assert low.dtype == jnp.bfloat16
    assert_close(low, rope(Q, far, Rope()), 2**-7)
    cos, _ = cos_sin(far, 16, Rope())
    assert cos.dtype == jnp.float32 and abs(float(cos[0, 0, 0]) - np.cos(1001.0)) < 1e-6


def test_frequencies_of_the_extension_schemes_lie_between_the_two_extremes():
    plain = Rope().frequencies(64)
    for scaling in (Llama3(8.0, 1.0, 4.0, 256), Yarn(8.0, 256), Yarn(8.0, 256, truncate=False)):
        scaled = Rope(scaling=scaling).frequencies(64)
        assert np.all(scaled <= plain * (1 + 1e-12)) and np.all(scaled >= plain / 8 * (1 - 1e-12))
        assert np.isclose(scaled[0], plain[0]) and np.isclose(scaled[-1], plain[-1] / 8)


def test_yarn_multiplies_by_its_attention_factor():
    norm = lambda scaling: jnp.linalg.norm(rope(Q, POSITIONS, Rope(scaling=scaling))) / jnp.linalg.norm(Q)
    assert abs(norm(Yarn(4.0, 64)) - (0.1 * np.log(4.0) + 1)) < 1e-5
    assert abs(norm(Yarn(4.0, 64, attention_factor=0.5)) - 0.5) < 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rope(fraction=1.5), "fraction must be above 0 and at most 1, found 1.5"),
        (lambda: Rope(fraction=0.35).width(16), "fraction 0.35 of head_dim 16 is 5"),
        (lambda: Rope(base=1.0), "base must be above 1"),
        (lambda: Rope(scaling=Linear(0.0)), "factor must be positive"),
        (lambda: Llama3(8.0, 4.0, 1.0, 64), "low_freq_factor < high_freq_factor"),
        (lambda: Yarn(4.0, 64, beta_fast=1, beta_slow=2), "beta_slow < beta_fast"),
    ],
)
def test_impossible_settings_say_which(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_by_product_is_the_same(fraction):
    """In 16 bits for TPUs: the same numbers, and gradients with one rounding more."""
    x_BTHC = jax.random.normal(jax.random.key(0), (2, 7, 3, 16), jnp.bfloat16)
    weights = jax.random.normal(jax.random.key(1), x_BTHC.shape)
    position_BT = jnp.arange(100, 107)[None]

    def turned(target):
        def loss(x):
            with lowering_for(target):
                y = rope(x, position_BT, Rope(fraction=fraction))
            return jnp.sum(y.astype(jnp.float32) * weights), y

        return jax.jit(jax.grad(loss, has_aux=True))(x_BTHC)

    (expected_dx, expected), (dx, y) = turned("cpu"), turned("tpu")
    assert y.dtype == jnp.bfloat16
    assert jnp.array_equal(y, expected)
    assert_close(dx, expected_dx, 2**-8)
