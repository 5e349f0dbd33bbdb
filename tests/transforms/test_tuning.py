"""Learned starts: prompts, prefixes and states, of every mixer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.core.spec import abstract
from jaxeff.core.tree import paths
from jaxeff.mixers import GQA, MLP, Ctx, Mamba2, SlidingWindow
from jaxeff.mixers.registry import MIXERS
from jaxeff.mixers.start import length, started
from jaxeff.models import LM, Block, Stage
from jaxeff.models.generate import generate
from jaxeff.models.rwkv import rwkv7_stages
from jaxeff.transforms import LoRA, PrefixTuning, PromptTuning, StateTuning, chain
from tests.closeness import assert_close

KEY = jax.random.key(0)
V, D, B, T = 17, 16, 2, 6
HYBRID = LM(V, D, (Stage((Block(Mamba2(head_dim=8), MLP(d_hidden=8)), Block(GQA(n_heads=2), MLP(d_hidden=8))), 2),))
TOKENS = np.random.default_rng(1).integers(0, V, (B, T)).astype(np.int32)


def model(name):
    stages = rwkv7_stages(2) if name == "rwkv7" else (Stage((Block(MIXERS[name](), None),), 2),)
    return LM(V, D, stages)


def noise(tree, scale):
    """Normal numbers in the shapes of a tree."""
    r = np.random.default_rng(2)
    return jax.tree.map(lambda x: np.float32(scale) * r.standard_normal(x.shape, np.float32), tree)


@functools.cache
def values(lm):
    """Parameters that are no initial values: RWKV-7 begins with a product that is zero."""
    return noise(abstract(lm.specs()), 0.3)


def planned(lm, *transforms):
    return chain(*transforms).plan(lm.specs(), model=lm)


def tuned(lm, *transforms):
    plan = planned(lm, *transforms)
    return plan, values(lm), jax.jit(plan.lift)(values(lm), KEY)


@functools.partial(jax.jit, static_argnums=0)
def hidden(lm, params, tokens, state=None, ctx=Ctx()):
    return lm.hidden(params, tokens, state, ctx=ctx)


@functools.partial(jax.jit, static_argnums=0)
def begin(lm, params):
    return lm.start(params, B, T)


def moved(params):
    """With learned values that are not those of the beginning."""
    return params | {"start": jax.tree.map(jnp.add, params["start"], noise(params["start"], 0.1))}


@pytest.mark.parametrize("name", MIXERS)
def test_every_state_learns_from_one_that_changes_nothing(name):
    lm = model(name)
    plan, params, lifted = tuned(lm, StateTuning(slots=3))
    assert jax.tree.structure(abstract(plan.specs)) == jax.tree.structure(lifted)
    assert [x.shape for x in jax.tree.leaves(abstract(plan.specs))] == [x.shape for x in jax.tree.leaves(lifted)]
    # Attention begins with slots, and RG-LRU takes the first token of a text, which no longer is one, in another way.
    same = not isinstance(MIXERS[name](), GQA) and name != "rglru"
    weigh = np.random.default_rng(3).standard_normal((B, T, D), np.float32)

    def weighed(start, params):
        y = lm.hidden(params | {"start": start}, TOKENS).y
        return jnp.sum(weigh * y), (y, lm.hidden(params, TOKENS).y if same else y)

    grads, (y, plain) = jax.jit(jax.grad(weighed, has_aux=True))(lifted["start"], params)
    for path, gradient in paths(grads).items():
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, path
    if same:
        assert_close(y, plain, 1e-5)


@pytest.mark.parametrize(
    "transforms",
    [(PromptTuning(3),), (PrefixTuning(slots=3),), (StateTuning(slots=2), PromptTuning(3))],
    ids=["prompt", "prefix", "both"],
)
def test_a_text_goes_on_from_its_start(transforms):
    _, _, lifted = tuned(HYBRID, *transforms)
    lifted = moved(lifted)
    whole = hidden(HYBRID, lifted, TOKENS)
    assert whole.state is None
    state, ys = begin(HYBRID, lifted), []
    for t in range(T):
        out = hidden(HYBRID, lifted, TOKENS[:, t : t + 1], state)
        state, ys = out.state, [*ys, out.y]
    assert_close(jnp.concatenate(ys, axis=1), whole.y, 1e-5)
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    row = Ctx(segment_ids=np.ones((B, T), np.int32), positions=positions)
    assert_close(hidden(HYBRID, lifted, TOKENS, ctx=row).y, whole.y, 1e-5)


@pytest.mark.parametrize("lm", [HYBRID, model("rglru")], ids=["hybrid", "rglru"])
def test_a_prompt_is_read_like_tokens(lm):
    _, params, lifted = tuned(lm, PromptTuning(3))
    ids = np.asarray([5, 1, 9])
    lifted |= {"start": {"prompt": params["embed"][ids]}}
    longer = np.concatenate([np.broadcast_to(ids, (B, 3)), TOKENS], axis=1, dtype=np.int32)
    assert_close(hidden(lm, lifted, TOKENS).y, hidden(lm, params, longer).y[:, 3:], 1e-5)
    np.testing.assert_array_equal(generate(lm, lifted, TOKENS, 4), generate(lm, params, longer, 4))


def test_a_prefix_begins_as_the_keys_of_tokens():
    lm = model("gqa")
    _, params, lifted = tuned(lm, PrefixTuning(slots=3))
    cache = jax.tree.map(lambda x: x[:, 0], begin(lm, lifted))["0"]["mixer"]
    # The keys of every token at the start of a text, as many texts.
    state = hidden(lm, params, np.arange(V, dtype=np.int32)[:, None], lm.init_state(V, 3)).state
    found = state["0"]["mixer"].values["k"][0, :, 0]
    assert min(float(jnp.abs(k - cache.values["k"][0, 0]).max()) for k in found) < 1e-6
    assert cache.written[0] == 3 and cache.row.position[0] == 3 and length(lifted["start"]) == 3


def test_a_second_segment_starts_from_nothing():
    _, params, lifted = tuned(HYBRID, StateTuning(slots=2))
    ids = np.broadcast_to(np.asarray([1, 1, 1, 2, 2, 2], np.int32), (B, T))
    found = hidden(HYBRID, moved(lifted), TOKENS, ctx=Ctx(segment_ids=ids)).y
    plain = hidden(HYBRID, params, TOKENS, ctx=Ctx(segment_ids=ids)).y
    assert_close(found[:, 3:], plain[:, 3:], 1e-5)
    assert float(jnp.abs(found[:, :3] - plain[:, :3]).max()) > 1e-3


def test_only_the_start_trains():
    plan = planned(HYBRID, StateTuning(rules=("blocks/0/mixer", "blocks/1/.*"), slots=2))
    trained = {path for path in paths(plan.specs) if plan.trains(path)}
    assert trained and all(path.startswith("start/state/") for path in trained)
    both = planned(HYBRID, LoRA(rules=("blocks/1/mixer/q",)), PrefixTuning(slots=2))
    trained = {path for path in paths(both.specs) if both.trains(path)}
    assert {path.split("/")[0] for path in trained} == {"start", "blocks"}


def test_a_state_of_rwkv_4_keeps_what_divides():
    lm = model("rwkv4")
    _, _, lifted = tuned(lm, StateTuning())
    assert {path.rpartition("/")[2] for path in lifted["start"]["state"]} == {"num", "x"}
    state = started(lm.init_state(B, T), lifted["start"]["state"])
    assert float(jnp.abs(state["0"]["mixer"].wkv.top).max()) == 0


def test_a_window_holds_its_prefix():
    lm = LM(V, D, (Stage((Block(SlidingWindow(window=4, n_heads=2), None),), 2),))
    _, _, lifted = tuned(lm, PrefixTuning(slots=4))
    assert np.isfinite(hidden(lm, lifted, TOKENS).y).all()
    with pytest.raises(UserError, match="5 slots do not fit the window of blocks/0/mixer, 4"):
        tuned(lm, PrefixTuning(slots=5))


@pytest.mark.parametrize("transforms, message", [
    ((PrefixTuning(rules=("blocks/7/.*",)),), "rule of PrefixTuning 'blocks/7/.\\*' matches no path"),
    ((PromptTuning(), PromptTuning()), "a learned prompt already"),
    ((StateTuning(), PrefixTuning()), "a learned state already"),
])  # fmt: skip
def test_what_cannot_be_learned_is_refused(transforms, message):
    with pytest.raises(UserError, match=message):
        tuned(HYBRID, *transforms)


def test_what_has_no_states_is_refused():
    with pytest.raises(UserError, match="no mixer of this model has a cache; StateTuning learns recurrent states"):
        tuned(model("mamba2"), PrefixTuning())
    with pytest.raises(UserError, match="needs the model whose states it learns"):
        StateTuning().plan(HYBRID.specs())
    with pytest.raises(UserError, match="needs the Specs of a language model"):
        PromptTuning().plan({"w": HYBRID.specs()["embed"]})
    plan, _, lifted = tuned(HYBRID, PromptTuning(2))
    with pytest.raises(UserError, match="a learned prompt is no weight of the model"):
        plan.merge(lifted)
    for wrong in (lambda: PromptTuning(0), lambda: StateTuning(slots=0), lambda: PromptTuning(init="zeros")):
        with pytest.raises(ValueError):
            wrong()


def test_a_prompt_takes_positions():
    bounded = dataclasses.replace(HYBRID, max_positions=10)
    _, _, lifted = tuned(bounded, PromptTuning(3))
    with pytest.raises(UserError, match="need 11 positions"):
        generate(bounded, lifted, TOKENS, 2)
