import jax
import jax.numpy as jnp
import pytest

from jaxeff.mixers import GQA, MHA, MLP, MQA, Ctx, SlidingWindow
from tests.compiled import apply_mixer, values

KEY = jax.random.key(0)


def run(mixer, x_BTD, split):
    """The sequence in pieces of the given lengths, through a cache."""
    params = values(mixer, KEY)
    state, outputs, start = mixer.init_state(x_BTD.shape[0], x_BTD.shape[1], jnp.float32), [], 0
    for n in split:
        y, state = apply_mixer(mixer, params, x_BTD[:, start : start + n], state, Ctx())
        outputs.append(y)
        start += n
    return jnp.concatenate(outputs, axis=1), apply_mixer(mixer, params, x_BTD, None, Ctx())[0]


@pytest.mark.parametrize(
    ("make", "heads"),
    [(GQA, (8, 2)), (MHA, (8, 8)), (MQA, (8, 1)), (SlidingWindow, (8, 2))],
    ids=["gqa", "mha", "mqa", "window"],
)
def test_sizes_derive_from_the_width(make, heads):
    mixer = make(d_model=256)
    assert (mixer.heads, mixer.kv_heads) == heads and mixer.head == 32
    assert GQA(d_model=1024).head == 64


@pytest.mark.parametrize("prompt", [1, 3, 4, 5, 8, 12])
def test_rolling_cache_around_the_window(prompt):
    x = jax.random.normal(KEY, (2, 12, 16))
    pieces, whole = run(SlidingWindow(16, window=4, n_heads=2), x, [prompt] + [1] * (12 - prompt))
    assert jnp.max(jnp.abs(pieces - whole)) < 1e-5


@pytest.mark.parametrize("split", [[5, 7], [1, 3, 8]])
def test_pieces_longer_than_one_token(split):
    x = jax.random.normal(KEY, (2, 12, 16))
    for mixer in (GQA(16, n_heads=4, n_kv_heads=2), SlidingWindow(16, window=5, n_heads=2)):
        pieces, whole = run(mixer, x, split)
        assert jnp.max(jnp.abs(pieces - whole)) < 1e-5


def test_window_state_does_not_grow_with_the_text():
    mixer = SlidingWindow(16, window=4)
    assert mixer.init_state(1, 1000, jnp.float32).k.shape[1] == 4
    assert mixer.init_state(1, 3, jnp.float32).k.shape[1] == 3


def test_a_prompt_longer_than_the_cache_is_refused():
    mixer = GQA(16)
    params = values(mixer, KEY)
    with pytest.raises(ValueError, match="5 tokens do not fit a cache of max_len=4"):
        mixer.apply(params, jnp.ones((1, 5, 16)), mixer.init_state(1, 4, jnp.float32))


def test_norm_bias_and_softcap_change_the_output():
    x = jax.random.normal(KEY, (1, 6, 16))
    outputs = []
    for options in ({}, {"qk_norm": True}, {"softcap": 0.5}, {"rope": None}):
        mixer = GQA(16, n_heads=2, **options)
        outputs.append(apply_mixer(mixer, values(mixer, KEY), x, None, Ctx())[0])
    for i, a in enumerate(outputs):
        for b in outputs[:i]:
            assert jnp.max(jnp.abs(a - b)) > 1e-4
    biased = GQA(16, n_heads=2, bias=True)
    assert apply_mixer(biased, values(biased, KEY), x, None, Ctx())[0].shape == x.shape
    assert set(biased.specs()) == {"q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "o_bias"}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(d_model=30, n_heads=4), "n_heads=4 does not divide d_model=30"),
        (dict(d_model=32, n_heads=4, n_kv_heads=3), "n_kv_heads=3 does not divide n_heads=4"),
        (dict(d_model=32, head_dim=7), "head_dim=7 is odd"),
        (dict(d_model=0), "d_model must be at least 1"),
        (dict(d_model=32, window=0), "window must be at least 1"),
    ],
)
def test_impossible_sizes_say_which(sizes, message):
    with pytest.raises(ValueError, match=message):
        GQA(**sizes)


def test_a_mixer_without_width_says_so():
    with pytest.raises(ValueError, match="GQA has no d_model"):
        GQA().specs()


def test_mlp_refuses_an_unknown_activation():
    with pytest.raises(ValueError, match="did you mean.*'gelu'"):
        MLP(16, activation="gellu")
