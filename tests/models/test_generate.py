import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.core.spec import abstract
from jaxeff.mixers import GQA, RWKV7, Ctx, SlidingWindow
from jaxeff.models import LM, Block, Stage, Tied, apart, generate, stream
from jaxeff.models.generate import in_pieces, keep
from jaxeff.transforms import Int8
from tests.compiled import apply_model

KEY = jax.random.key(0)
PROMPT = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0], [5, 0, 0, 0, 0]])
LENGTHS = np.array([5, 3, 1])
MODELS = {name: LM(11, d_model=16, stages=(Stage((name,), 2),)) for name in ("gqa", "linear")}
# A window of 3, which binds within each text here.
MODELS["window"] = LM(11, d_model=16, stages=(Stage((Block(SlidingWindow(window=3)),), 2),))


@functools.cache
def parameters(lm):
    """Larger embeddings spread the logits, so that an argmax is never a matter of rounding. On a device, as `apart` needs them."""
    r = np.random.default_rng(1)
    params = jax.tree.map(lambda w: 0.3 * r.standard_normal(w.shape, np.float32), abstract(lm.specs()))
    return jax.device_put(params | {"embed": 4 * params["embed"]})


def greedy_by_hand(lm, params, row, n):
    row = list(row)
    for _ in range(n):
        padded = jnp.array([row + [0] * (24 - len(row))])
        row.append(int(jnp.argmax(apply_model(lm, params, padded, None, Ctx())[0][0, len(row) - 1])))
    return row[-n:]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_the_argmax_of_the_full_forward_for_ragged_prompts(name):
    lm = MODELS[name]
    params = parameters(lm)
    out = generate(lm, params, PROMPT, 8, prompt_lengths=LENGTHS)
    for row, prompt, length in zip(out, PROMPT, LENGTHS, strict=True):
        assert row.tolist() == greedy_by_hand(lm, params, prompt[:length], 8)


def test_a_row_is_filled_after_its_end():
    lm = MODELS["gqa"]
    params = parameters(lm)
    free = generate(lm, params, PROMPT, 8, prompt_lengths=LENGTHS)
    eos = int(free[0, 2])
    out = generate(lm, params, PROMPT, 8, prompt_lengths=LENGTHS, eos=eos)
    for ended, row in zip(out.tolist(), free.tolist(), strict=True):
        end = row.index(eos) if eos in row else 8
        assert ended[:end] == row[:end] and set(ended[end:]) <= {eos}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_pieces_are_what_comes_at_once(temperature):
    lm = MODELS["linear"]
    params = parameters(lm)
    options = dict(prompt_lengths=LENGTHS, temperature=temperature, key=KEY)
    whole = generate(lm, params, PROMPT, 70, **options)
    pieces = list(in_pieces(lm, params, PROMPT, 70, **options))
    assert [piece.shape for piece in pieces] == [(3, 64), (3, 6)]
    assert jnp.array_equal(jnp.concatenate(pieces, axis=1), whole)
    eos = int(whole[0, 66])
    ended = generate(lm, params, PROMPT, 70, eos=eos, **options)
    pieces = list(in_pieces(lm, params, PROMPT, 70, eos=eos, **options))
    assert jnp.array_equal(jnp.concatenate(pieces, axis=1), ended)


def test_sampling_follows_the_key_and_the_distribution():
    lm = MODELS["gqa"]
    params = parameters(lm)
    one = generate(lm, params, PROMPT, 4, temperature=1.0, key=jax.random.key(5))
    assert jnp.array_equal(one, generate(lm, params, PROMPT, 4, temperature=1.0, key=jax.random.key(5)))
    assert not jnp.array_equal(one, generate(lm, params, PROMPT, 4, temperature=1.0, key=jax.random.key(6)))
    many = generate(lm, params, np.tile(PROMPT[:1], (2000, 1)), 1, temperature=2.0, key=KEY)[:, 0]
    expected = jax.nn.softmax(apply_model(lm, params, jnp.asarray(PROMPT[:1]), None, Ctx())[0][0, -1] / 2.0)
    found = jnp.bincount(many, length=11) / 2000
    # Standard error of a share is at most sqrt(0.25 / 2000) = 0.011; four of them.
    assert jnp.max(jnp.abs(found - expected)) < 0.045


def test_sampling_settings_that_leave_one_token_are_greedy():
    lm = MODELS["linear"]
    params = parameters(lm)
    greedy = generate(lm, params, PROMPT, 8)
    for setting in (dict(top_k=1), dict(top_p=1e-6), dict(min_p=1.0)):
        assert jnp.array_equal(greedy, generate(lm, params, PROMPT, 8, temperature=0.7, key=KEY, **setting))


def test_filters():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))

    def kept(**setting):
        return jnp.isfinite(keep(logits, **setting))[0].tolist()

    assert kept(top_k=2) == [True, True, False, False]
    assert kept(top_p=0.6) == [True, True, False, False]
    assert kept(top_p=0.5) == [True, False, False, False]
    assert kept(top_p=1.0) == [True] * 4
    assert kept(min_p=0.2) == [True, True, True, False]
    assert kept(top_k=3, min_p=0.5) == [True, True, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(prompt=np.zeros((1, 0), int)), "prompt is empty"),
        (dict(prompt=np.array([[11]])), "outside the vocabulary of 11"),
        (dict(max_tokens=0), "max_tokens must be at least 1"),
        (dict(temperature=0.5), "needs key"),
        (dict(temperature=-1.0), "at least 0"),
        (dict(top_k=12), r"top_k must lie in 1\.\.11"),
        (dict(top_p=0.0), "top_p must lie in"),
        (dict(top_p=0.5), "top_p=0.5 chooses among tokens to draw from; at temperature 0 none is drawn"),
        (dict(temperature=float("nan")), "temperature must be at least 0 and finite, found nan"),
        (dict(temperature=float("inf")), "temperature must be at least 0 and finite, found inf"),
        (dict(prompt_lengths=np.array([7, 1, 1])), "prompt_lengths go up to 7"),
    ],
)
def test_bad_settings(change, message):
    lm = MODELS["gqa"]
    with pytest.raises(UserError, match=message):
        generate(lm, parameters(lm), **(dict(prompt=PROMPT, max_tokens=4) | change))


def test_a_text_longer_than_the_models_positions():
    lm = LM(11, d_model=16, stages=(Stage((Block(GQA(rope=None)),), 1),), max_positions=8)
    params = parameters(lm)
    assert generate(lm, params, PROMPT, 3).shape == (3, 3)
    with pytest.raises(UserError, match="need 9 positions; the model has max_positions=8"):
        generate(lm, params, PROMPT, 4)


TIED = LM(11, d_model=16, stages=(Stage((Tied("t", "gqa"), "mamba2", Tied("t", "gqa")), 2), Stage(("linear",))))
PLACED = LM(11, 16, (Stage((Block(GQA(rope=None)),), 2),), learned_positions=True, max_positions=20)


@pytest.mark.parametrize("lm", [*MODELS.values(), TIED, PLACED])
def test_layers_taken_apart_say_the_same(lm, monkeypatch):
    params = jax.jit(Int8().plan(lm.specs()).lift)(parameters(lm), KEY)
    whole = generate(lm, params, PROMPT, 8, prompt_lengths=LENGTHS)
    monkeypatch.setattr(apart, "FEWEST", 1)
    fast, own = apart.apart(lm, params, 8)
    assert len(fast.stages) == lm.n_layers and {leaf.shape[0] for leaf in jax.tree.leaves(own["blocks"])} == {1}
    assert jnp.array_equal(generate(lm, params, PROMPT, 8, prompt_lengths=LENGTHS), whole)
    assert jnp.array_equal(jnp.concatenate(list(in_pieces(lm, params, PROMPT, 8, prompt_lengths=LENGTHS)), 1), whole)
    assert list(stream(lm, params, PROMPT[0], 8)) == whole[0].tolist()


def test_what_is_not_taken_apart():
    lm = MODELS["gqa"]
    params = parameters(lm)
    sharing = LM(11, 16, (Stage((Block(RWKV7(value_residual=False)), Block(RWKV7(value_residual=True))), 2),))
    assert apart.apart(lm, params, 99)[0] is not lm
    assert apart.apart(lm, params, 8)[0] is lm  # too few tokens
    assert apart.apart(sharing, parameters(sharing), 99)[0] is sharing  # v_first would live on
    assert jax.eval_shape(lambda params: apart.apart(lm, params, 99)[1], params).keys() == params.keys()


@pytest.mark.parametrize("sampling", [{}, dict(temperature=1.5, top_k=4, key=jax.random.key(5))])
def test_a_stream_is_what_is_generated(sampling):
    lm = MODELS["gqa"]
    params = parameters(lm)
    whole = generate(lm, params, PROMPT[:1], 8, **sampling)[0].tolist()
    assert list(stream(lm, params, PROMPT[0], 8, **sampling)) == whole
    eos = (10**6, whole[3])
    ended = list(stream(lm, params, PROMPT[0], 8, eos=eos, **sampling))
    assert ended == whole[: whole.index(whole[3]) + 1]
    filled = generate(lm, params, PROMPT[:1], 8, eos=eos, **sampling)[0].tolist()
    assert filled == ended + [eos[0]] * (8 - len(ended))
    with pytest.raises(UserError, match="the prompt is empty"):
        next(stream(lm, params, [], 8))
