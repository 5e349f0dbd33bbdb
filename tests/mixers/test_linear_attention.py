import jax
import jax.numpy as jnp
import pytest

from jaxeff.mixers.linear_attention import FEATURES, LinearAttention, taylor2
from tests.closeness import assert_close
from tests.compiled import values

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (2, 9, 16))


def test_taylor2_is_the_expansion_of_the_exponential():
    q, k = jax.random.normal(KEY, (2, 20, 5))
    s = jnp.sum(q * k, axis=-1) / 5**0.5
    assert_close(jnp.sum(taylor2(q) * taylor2(k), axis=-1), 1 + s + s**2 / 2, 1e-6)
    assert taylor2(q).shape[-1] == 1 + 5 + 15


@pytest.mark.parametrize("name", FEATURES)
def test_against_the_weighted_mean_written_out(name):
    mixer = LinearAttention(16, n_heads=2, feature_map=name)
    params = values(mixer, KEY)
    q, k, v = (jnp.einsum("btd,dhc->bthc", X, params[n]) for n in "qkv")
    scores = jnp.einsum("bthn,bshn->bhts", FEATURES[name](q), FEATURES[name](k)) * jnp.tri(9)[None, None]
    weights = scores / jnp.maximum(jnp.sum(scores, axis=-1, keepdims=True), 1e-6)
    expected = jnp.einsum("bhts,bshc,hcd->btd", weights, v, params["o"])
    assert_close(mixer.apply(params, X)[0], expected, 1e-5)
    assert params["q"].shape[-1] == mixer.key and FEATURES[name](q).shape[-1] == mixer.features


def test_features_that_are_all_zero_give_zero_and_finite_gradients():
    mixer = LinearAttention(16, n_heads=2, feature_map="relu", biases=("q", "k", "v", "o"))
    params = values(mixer, KEY)
    params |= {"q_bias": params["q_bias"] - 100.0}
    y, pullback = jax.vjp(lambda params: mixer.apply(params, X)[0], params)
    assert not jnp.any(y)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(pullback(jnp.ones_like(y))))


def test_sizes_derive_from_the_width():
    assert (LinearAttention(256).heads, LinearAttention(256).head, LinearAttention(1024).head) == (8, 32, 64)
    taylor = LinearAttention(256, feature_map="taylor2")
    assert (taylor.key, taylor.features) == (16, 153)
    # State and its normaliser are float32 whatever was asked for.
    assert taylor.init_state(3, 10, jnp.bfloat16).S.shape == (3, 8, 153, 33)
    assert taylor.init_state(3, 10, jnp.bfloat16).S.dtype == jnp.float32


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(d_model=30, n_heads=4), "n_heads=4 does not divide d_model=30"),
        (dict(head_dim=0), "head_dim must be at least 1, found 0"),
        (dict(feature_map="elu1"), "no feature map is called 'elu1'; did you mean 'elu'"),
    ],
)
def test_impossible_sizes_say_which(sizes, message):
    with pytest.raises(ValueError, match=message):
        LinearAttention(**sizes)
