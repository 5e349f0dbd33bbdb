"""lm-eval's requests: against full forward passes, in their order, once, in few programs. Agreement with lm-eval's own model is in
tests/golden."""

import jax
import numpy as np
import pytest

from jaxeff.core.errors import UserError
from jaxeff.core.precision import POLICIES
from jaxeff.data import Bytes, Published
from jaxeff.evaluate import likelihood, lm_eval
from jaxeff.evaluate.lm_eval import Evaluator, Settings, settings
from jaxeff.mixers.base import Ctx
from jaxeff.models import LM, Stage, generate
from tests.compiled import apply_model, values
from tests.interop.byte_level import special, tokenizer

LM_BYTES = LM(259, d_model=16, stages=(Stage(("gqa",), 1),), tied=False, max_positions=200)
POLICY = POLICIES["float32"]


@pytest.fixture(scope="module")
def params():
    # A larger head spreads the logits, so that an argmax is never a matter of rounding.
    found = values(LM_BYTES, jax.random.key(0))
    return found | {"head": found["head"] * 8}


def evaluator(params, **options):
    return Evaluator(LM_BYTES, params, Bytes().load(None), **{"batch_size": 2, "max_length": 128} | options)


def by_hand(params, context, continuation, limit):
    """(log-probability, greedy) of a continuation, by a pass over all that is read."""
    tokens = (context + continuation)[-(limit + 1) :]
    padded = np.zeros((1, 128), np.int32)
    padded[0, : len(tokens) - 1] = tokens[:-1]
    logits_TV = np.asarray(apply_model(LM_BYTES, params, padded, None, Ctx())[0][0], np.float64)
    logp_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
    rows = range(len(tokens) - 1 - len(continuation), len(tokens) - 1)
    greedy = all(logits_TV[i].argmax() == token for i, token in zip(rows, continuation, strict=True))
    return sum(logp_TV[i, token] for i, token in zip(rows, continuation, strict=True)), greedy


def test_by_hand_at_all_lengths(params):
    draw = np.random.default_rng(0)
    sizes = [(1, 1), (1, 64), (1, 65), (3, 62), (63, 1), (64, 1), (65, 2), (100, 28), (100, 29), (150, 3), (1, 128)]
    pairs = [tuple(draw.integers(3, 259, n).tolist() for n in size) for size in sizes]
    best = int(apply_model(LM_BYTES, params, np.array([pairs[0][0]]), None, Ctx())[0][0, -1].argmax())
    pairs.append((pairs[0][0], [best]))
    pairs += [(pairs[5][0], [token]) for token in range(20, 31)]  # they share a row, and are more than one has room for
    found = likelihood.loglikelihoods(LM_BYTES, params, pairs, 128, batch_size=3, policy=POLICY)
    wanted = [by_hand(params, *pair, 128) for pair in pairs]
    # Of a likely token it is a small difference of numbers of some 30, in float32.
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in wanted], rtol=1e-5, atol=3e-6)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    assert found[len(sizes)][1]


def test_once_in_order_and_in_few_programs(params, monkeypatch):
    asked = []

    def counted(lm, params, pairs, *rest, **options):
        asked.extend(pairs)
        return likelihood.loglikelihoods(lm, params, pairs, *rest, **options)

    monkeypatch.setattr(lm_eval, "loglikelihoods", counted)
    own = evaluator(params)
    requests = [("a" * n, c) for n in (7, 1, 40, 3) for c in (" b", " c")]
    before = likelihood._scores._cache_size()
    found = own.loglikelihood([*requests, *requests[::-1]])
    assert likelihood._scores._cache_size() - before <= 1 and len(asked) == len(requests)
    assert found[:8] == found[8:][::-1] and len(set(found)) == 8
    assert own.loglikelihood(requests[3:4]) == found[3:4] and len(asked) == len(requests)
    alone = [evaluator(params).loglikelihood([request])[0] for request in requests]
    np.testing.assert_allclose([x for x, _ in alone], [x for x, _ in found[:8]], rtol=1e-5)


def test_spaces_go_to_the_continuation_and_nothing_is_begun_by_the_mark(params):
    own = evaluator(params)
    encode = own.tokenizer.encode
    assert own._split("a  ", "b") == ([own.tokenizer.bos_id, *encode("a")], encode("  b"))
    assert own._split("", "b") == own._split("  ", "b")[:1] + (encode("b"),) == ([own.tokenizer.bos_id], encode("b"))
    assert own._split("  ", "b")[1] == encode("  b")


def test_whole_texts_count_each_byte_once(params):
    own = evaluator(params, max_length=16)
    text = "the cat sat on the mat, and the dog."
    ids, total = own.tokenizer.encode(text), 0.0
    for begin, start, end in ((0, 0, 16), (15, 16, 32), (19, 32, 36)):
        context = [own.tokenizer.bos_id] if start == 0 else ids[begin:start]
        total += by_hand(params, context, ids[start:end], 16)[0]
    found = own.loglikelihood_rolling([text, "", text])
    assert found == [pytest.approx(total, rel=1e-5), 0, found[0]]


def test_generated_texts_end_where_they_are_asked_to(params, monkeypatch):
    own = evaluator(params)
    row = own.tokenizer.prompt("the cat")
    ids = generate(LM_BYTES, params, np.array([row]), 70, eos=own.tokenizer.ends)[0].tolist()
    ids = ids[: next((n for n, token in enumerate(ids) if token in own.tokenizer.ends), 70)]
    whole = own.tokenizer.decode(ids)
    plain, one = {"max_gen_toks": 70}, whole[5:7]
    found = own.generate_until([("the cat", plain), ("the cat", plain | {"until": [one, ""]}), ("the cat", plain)])
    assert found == [whole, whole.split(one)[0], whole]
    # What is known is not computed again; a stop in the first piece is where it ends.
    pieces = []
    monkeypatch.setattr(lm_eval, "in_pieces", lambda *a, **k: (pieces.append(1) or x for x in lm_eval_pieces(*a, **k)))
    assert own.generate_until([("the cat", plain)]) == [whole] and not pieces
    evaluator(params).generate_until([("the cat", plain | {"until": one})])
    assert len(pieces) == 1
    # A context that is too long loses its beginning.
    long = "x" * 100 + "the cat"
    assert own.generate_until([(long, plain)]) == own.generate_until([(long[-58:], plain)])


lm_eval_pieces = lm_eval.in_pieces


def test_learned_positions_are_used_to_the_last():
    """Padding must not reach places that have no vector."""
    lm = LM(259, d_model=16, stages=(Stage(("gqa",), 1),), tied=False, learned_positions=True, max_positions=40)
    params = values(lm, jax.random.key(1))
    own = Evaluator(lm, params, Bytes().load(None))
    row = own.tokenizer.prompt("x" * 40)
    logits_TV = np.asarray(apply_model(lm, params, np.array([row[:40]]), None, Ctx())[0][0], np.float64)
    logp_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
    wanted = sum(logp_TV[i, row[i + 1]] for i in range(5, 40))
    assert own.loglikelihood([("x" * 5, "x" * 35)])[0][0] == pytest.approx(wanted, rel=1e-5)
    ids = generate(lm, params, np.array([row[-30:]]), 10, eos=own.tokenizer.ends)[0]
    assert own.generate_until([("x" * 40, {"max_gen_toks": 10})]) == [own.tokenizer.decode(ids)]


def test_sampled_texts_follow_the_seed_and_are_drawn_anew(params):
    how = {"max_gen_toks": 12, "do_sample": True, "temperature": 4.0, "top_k": 50}
    requests = [("the cat", how)] * 4
    found = evaluator(params).generate_until(requests)
    assert found == evaluator(params).generate_until(requests) and len(set(found)) == 4
    assert found != evaluator(params, seed=1).generate_until(requests)


def test_settings():
    off = (("top_k", None), ("top_p", None), ("min_p", None))
    assert settings({}, 9) == Settings((), 256, 0.0, off)
    asked = {"until": "x", "max_tokens": 5, "max_gen_toks": 3, "do_sample": False, "temperature": 0.7, "num_beams": 1}
    assert settings(asked, 9) == Settings(("x",), 3, 0.0, off)
    filters = {"temperature": 0.7, "top_k": 50, "top_p": 1.0, "min_p": 0.1}
    assert settings(filters, 9) == Settings((), 256, 0.7, (("top_k", 9), ("top_p", None), ("min_p", 0.1)))
    with pytest.raises(UserError, match="repetition_penalty, which is not understood"):
        settings({"repetition_penalty": 1.1}, 9)
    with pytest.raises(UserError, match="did you mean 'temperature'"):
        settings({"temperatur": 1.1}, 9)
    with pytest.raises(UserError, match="num_beams=4"):
        settings({"num_beams": 4}, 9)
    with pytest.raises(UserError, match="do_sample and temperature=0"):
        settings({"do_sample": True}, 9)


def test_requests_that_cannot_be(params):
    own = evaluator(params, max_length=16)
    with pytest.raises(UserError, match="nothing can be scored"):
        own.loglikelihood([("a", "")])
    with pytest.raises(UserError, match="has 17 tokens; the model reads 16"):
        own.loglikelihood([("a", "b" * 17)])
    with pytest.raises(UserError, match="max_gen_toks=16 leaves no room"):
        own.generate_until([("a", {"max_gen_toks": 16})])
    with pytest.raises(UserError, match="max_length=300: the model has 200 positions"):
        evaluator(params, max_length=300)
    with pytest.raises(UserError, match="no chat template"):
        own.rendered([{"role": "user", "content": "a"}])
    assert evaluator(params, max_length=None).max_length == 200 and own.template is None


def test_chats(tmp_path):
    tokenizer(tmp_path / "tokenizer.json")
    special(tmp_path)
    own = Evaluator(LM_BYTES, {}, Published(str(tmp_path)).load())
    said = [{"role": "user", "content": "a "}]
    assert own.rendered(said) == "<|user|>a </s><|assistant|>" and own.rendered(said, False) == "<|user|>a "
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + own.template
    plain, own.tokenizer.template = own.identity, refusing
    assert own.rendered([{"role": "system", "content": "b"}, *said]) == "<|user|>a </s><|assistant|>"
    assert own.template == refusing and own.identity != plain
    with pytest.raises(UserError, match="refuses this conversation: no robot"):
        own.rendered([{"role": "robot", "content": "b"}])
