import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.mixers import GQA, MHA, MLP, MQA, Ctx, RMSNorm, SlidingWindow
from tests.closeness import assert_close
from tests.compiled import apply_mixer, values

KEY = jax.random.key(0)


def run(mixer, x_BTD, split):
    """The sequence in pieces of the given lengths, through a cache."""
    params = values(mixer, KEY)
    state, outputs, start = mixer.init_state(x_BTD.shape[0], x_BTD.shape[1], jnp.float32), [], 0
    for n in split:
        y, state, *_ = apply_mixer(mixer, params, x_BTD[:, start : start + n], state, Ctx())
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
    assert mixer.init_state(1, 1000, jnp.float32).values["k"].shape[1] == 4
    assert mixer.init_state(1, 3, jnp.float32).values["k"].shape[1] == 3


def test_a_prompt_longer_than_the_cache_is_refused():
    mixer = GQA(16)
    params = values(mixer, KEY)
    with pytest.raises(ValueError, match="5 tokens do not fit a cache of max_len=4"):
        mixer.apply(params, jnp.ones((1, 5, 16)), mixer.init_state(1, 4, jnp.float32))


def softmax_attention(mixer, params, x_BTD, see_TS):
    """The layer without positions in float64: projections, norms, scores, softcap, softmax, output."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    q, k, v = (np.einsum("btd,dhc->bthc", x_BTD, p[n]) + p.get(f"{n}_bias", 0.0) for n in "qkv")
    if mixer.qk_norm is not None:
        axes = (-1,) if mixer.qk_norm_over == "head" else (-2, -1)
        unit = lambda y, w: y / np.sqrt(np.mean(y**2, axis=axes, keepdims=True) + mixer.qk_norm.eps) * w["scale"]
        q, k = unit(q, p["q_norm"]), unit(k, p["k_norm"])
    k, v = (np.repeat(y, mixer.heads // mixer.kv_heads, axis=2) for y in (k, v))
    s = np.einsum("bthc,bshc->bhts", q, k) * (mixer.scale or mixer.head**-0.5)
    s = s if mixer.softcap is None else mixer.softcap * np.tanh(s / mixer.softcap)
    s = np.where(see_TS, s, -np.inf)
    w = np.exp(s - s.max(-1, keepdims=True))
    o = np.einsum("bhts,bshc->bthc", w / w.sum(-1, keepdims=True), v)
    return np.einsum("bthc,hcd->btd", o, p["o"]) + p.get("o_bias", 0.0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qk_norm": RMSNorm()},
        {"qk_norm": RMSNorm(eps=0.1), "qk_norm_over": "all"},
        {"softcap": 0.5},
        {"scale": 0.7},
        {"biases": ("q", "v")},
        {"biases": ("q", "k", "v", "o")},
        {"causal": False},
        {"causal": False, "window": (1, 2)},
        {"window": (2, 0)},
    ],
    ids=str,
)
def test_the_layer_is_its_formula(options):
    mixer = GQA(16, n_heads=4, n_kv_heads=2, rope=None, **options)
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda w: w + 0.3 * noise.standard_normal(w.shape).astype(np.float32), values(mixer, KEY))
    x_BTD = noise.standard_normal((2, 7, 16))
    ahead = np.arange(7)[None] - np.arange(7)[:, None]
    left, right = mixer.window or (7, 7)
    see_TS = (ahead >= -left) & (ahead <= (0 if mixer.causal else right))
    y_BTD = apply_mixer(mixer, params, jnp.asarray(x_BTD, jnp.float32), None, Ctx()).y
    assert_close(y_BTD, softmax_attention(mixer, params, x_BTD, see_TS), 1e-5)


def test_attention_that_looks_ahead_has_no_decode_state():
    with pytest.raises(ValueError, match="it has no decode state"):
        GQA(16, causal=False).init_state(1, 4, jnp.float32)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(d_model=30, n_heads=4), "n_heads=4 does not divide d_model=30"),
        (dict(d_model=32, n_heads=4, n_kv_heads=3), "n_kv_heads=3 does not divide n_heads=4"),
        (dict(d_model=32, head_dim=7), "rope rotates pairs of channels: fraction 1.0 of head_dim 7 is 7"),
        (dict(d_model=0), "d_model must be at least 1"),
        (dict(d_model=32, window=3), r"window is \(left, right\).* found 3; the last w tokens: \(w - 1, 0\)"),
        (dict(d_model=32, window=(3, 1)), "sees nothing to its right"),
        (dict(d_model=32, biases=("q", "vv")), "biases names 'vv'; did you mean 'v'"),
        (dict(d_model=32, impl="flash"), "no attention implementation is called 'flash'"),
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
