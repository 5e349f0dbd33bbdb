"""The grammar's entropy is what it says."""

import math
import random

import pytest

from jaxeff.core.errors import UserError
from jaxeff.data import Grammar
from jaxeff.data.cache import silent
from jaxeff.data.grammar import RULES, bits, sentence


def texts(grammar: Grammar) -> list[str]:
    return [document.text for document in grammar.documents(silent)]


def test_rules_are_distributions():
    for name, rules in RULES.items():
        assert math.isclose(sum(p for p, _ in rules), 1.0), name


def test_exact_entropy_and_length_agree_with_a_large_sample():
    grammar, rng, n = Grammar(), random.Random(0), 4000
    lines = [sentence(rng) for _ in range(n)]
    surprise = [bits(line) for line in lines]
    mean = sum(surprise) / n
    error = math.sqrt(sum((s - mean) ** 2 for s in surprise)) / n
    assert abs(mean - grammar.bits_per_sentence) < 4 * error
    assert math.isclose(sum(map(len, lines)) / n, grammar.bytes_per_sentence, rel_tol=0.03)
    assert math.isclose(mean / (sum(map(len, lines)) / n), grammar.bits_per_byte, rel_tol=0.01)


def test_bits_by_hand():
    zipf = [sum(1 / k for k in range(1, n + 1)) for n in (4, 16, 8)]  # determiners, nouns, intransitive verbs
    p = 0.5 * 0.6 / zipf[0] / zipf[1] * 0.3 / zipf[2]
    assert math.isclose(bits("the dog sleeps .\n"), -math.log2(p))
    assert bits("the dog sleep .\n") == math.inf


def test_a_document_depends_on_its_number_and_the_seed_alone():
    assert texts(Grammar(3, seed=1)) == texts(Grammar(5, seed=1))[:3]
    assert texts(Grammar(3, seed=1)) != texts(Grammar(3, seed=2))
    assert Grammar(3).fingerprint() != Grammar(4).fingerprint()


def test_no_document_is_an_error():
    with pytest.raises(UserError, match="at least one document"):
        Grammar(n_documents=0)
