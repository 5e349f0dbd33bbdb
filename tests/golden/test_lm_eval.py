"""What lm-eval's own Hugging Face model answers, and the scores it makes of it, against ours; see make_lm_eval.py."""

import json
import math
import re

import numpy as np
import pytest

from jaxeff.data import Published
from jaxeff.evaluate.lm_eval import Evaluator
from jaxeff.interop import hf
from tests.golden.lm_eval_case import CHAT, NAMES, TASKS, write
from tests.golden.published import FOLDER

GOLDEN = json.loads((FOLDER / "lm_eval.json").read_text(encoding="utf-8"))
RELATIVE = 1e-4  # of log-likelihoods, float32 against float32


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write(folder, GOLDEN["seed"])
    return Evaluator(*hf.load(folder), Published(str(folder)).load(), batch_size=4)


def asked(kind):
    """The requests of a kind."""
    return [request for request in GOLDEN["requests"] if request["kind"] == kind]


@pytest.fixture(scope="module")
def choices(evaluator):
    return evaluator.loglikelihood([request["args"] for request in asked("loglikelihood")])


@pytest.fixture(scope="module")
def texts(evaluator):
    return evaluator.loglikelihood_rolling([request["args"][0] for request in asked("loglikelihood_rolling")])


@pytest.fixture(scope="module")
def answers(evaluator):
    return evaluator.generate_until([request["args"] for request in asked("generate_until")])


def documents(name):
    return [json.loads(line) for line in (TASKS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_loglikelihoods(choices):
    wanted = [request["answer"] for request in asked("loglikelihood")]
    np.testing.assert_allclose([x for x, _ in choices], [x for x, _ in wanted], rtol=RELATIVE)
    assert [greedy for _, greedy in choices] == [greedy for _, greedy in wanted]
    assert {greedy for _, greedy in choices} == {True, False} or GOLDEN["seed"] != 0


def test_rolling_loglikelihoods(texts):
    np.testing.assert_allclose(texts, [r["answer"] for r in asked("loglikelihood_rolling")], rtol=RELATIVE)


def test_generated_texts(answers):
    assert answers == [request["answer"] for request in asked("generate_until")]


def test_scores(choices, texts, answers):
    """Accuracies exactly; perplexities, which are sums of what is compared above, as closely as these."""
    wanted = {task: GOLDEN["scores"][task] for task in NAMES}
    found = iter(choices)
    right, right_by_length = [], []
    for document in documents("choice"):
        sums = np.array([next(found)[0] for _ in document["choices"]])
        right.append(np.argmax(sums) == document["gold"])
        right_by_length.append(np.argmax(sums / [len(choice) for choice in document["choices"]]) == document["gold"])
    assert wanted["jaxeff_choice"] == {"acc,none": np.mean(right), "acc_norm,none": np.mean(right_by_length)}
    written = [document["text"] for document in documents("text")]
    words = sum(len(re.split(r"\s+", text)) for text in written)  # the ends of a text too, where it has space there
    n_bytes = sum(len(text.encode()) for text in written)
    assert {name: pytest.approx(value, rel=10 * RELATIVE) for name, value in wanted["jaxeff_text"].items()} == {
        "word_perplexity,none": math.exp(-sum(texts) / words),
        "byte_perplexity,none": math.exp(-sum(texts) / n_bytes),
        "bits_per_byte,none": -sum(texts) / n_bytes / math.log(2),
    }
    exact = [text == document["answer"] for text, document in zip(answers, documents("answer"), strict=True)]
    assert wanted["jaxeff_answer"] == {"exact_match,none": np.mean(exact)}


def test_chats(evaluator):
    assert [evaluator.rendered(CHAT[:2]), evaluator.rendered(CHAT, False)] == GOLDEN["chat"]
