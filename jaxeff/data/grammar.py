"""A small probabilistic grammar of English sentences whose entropy is known exactly.

Ground truth for tests: no model can reach fewer bits per byte on the text than `Grammar.bits_per_byte`, and a good
one comes near. Subjects agree with their verbs across relative clauses; words follow Zipf's law within their class.
No sentence has two derivations, so the entropy of the derivations is that of the sentences.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jaxeff.core.errors import UserError
from jaxeff.data.cache import Report, digest
from jaxeff.data.documents import Document

NOUNS = "dog cat child bird friend teacher doctor farmer king guest artist pilot singer neighbour lawyer sailor".split()
ADJECTIVES = "old young small happy quiet clever tired brave kind hungry".split()
TRANSITIVE = "see follow know help hear find call thank draw trust".split()
INTRANSITIVE = "sleep laugh run wait sing dream work smile".split()

Rules = dict[str, tuple[tuple[float, tuple[str, ...]], ...]]


def _zipf(words: list[str]) -> tuple[tuple[float, tuple[str, ...]], ...]:
    total = sum(1 / rank for rank in range(1, len(words) + 1))
    return tuple((1 / rank / total, (word,)) for rank, word in enumerate(words, 1))


def _of_number(n: str, determiners: list[str]) -> Rules:
    """The rules of singular ("s") or plural ("p") phrases. A relative clause agrees with the noun it follows."""
    noun_end, verb_end = ("", "s") if n == "s" else ("s", "")
    nouns = ["children" if word == "child" and n == "p" else word + noun_end for word in NOUNS]
    return {
        f"NP{n}": (
            (0.6, (f"Det{n}", f"N{n}")),
            (0.25, (f"Det{n}", "Adj", f"N{n}")),
            (0.15, (f"Det{n}", f"N{n}", "that", f"VP{n}")),
        ),
        f"VP{n}": ((0.3, (f"Vi{n}",)), (0.35, (f"Vt{n}", "NPs")), (0.35, (f"Vt{n}", "NPp"))),
        f"Det{n}": _zipf(determiners),
        f"N{n}": _zipf(nouns),
        f"Vt{n}": _zipf([word + verb_end for word in TRANSITIVE]),
        f"Vi{n}": _zipf([word + verb_end for word in INTRANSITIVE]),
    }


RULES: Rules = {
    "S": ((0.5, ("NPs", "VPs", ".")), (0.5, ("NPp", "VPp", "."))),
    "Adj": _zipf(ADJECTIVES),
    **_of_number("s", ["the", "a", "every", "this"]),
    **_of_number("p", ["the", "some", "many", "these"]),
}


@dataclass(frozen=True)
class Grammar:
    """`n_documents` documents of `n_sentences` sentences each, a line a sentence; document i depends on (seed, i)."""

    n_documents: int = 1000
    n_sentences: int = 8
    seed: int = 0

    def __post_init__(self):
        if self.n_documents < 1 or self.n_sentences < 1:
            raise UserError(f"a Grammar needs at least one document of one sentence, not {self}")

    def recipe(self) -> list:
        return ["Grammar", digest(RULES), self.n_documents, self.n_sentences, self.seed]

    def fingerprint(self) -> str:
        return digest(self.recipe())

    def documents(self, report: Report) -> Iterator[Document]:
        for i in range(self.n_documents):
            rng = random.Random(f"{self.seed}/{i}")
            yield Document(f"{i:08d}", "".join(sentence(rng) for _ in range(self.n_sentences)))
            report("reading the corpus", i + 1, self.n_documents)

    @property
    def bits_per_sentence(self) -> float:
        """The exact entropy of a sentence."""
        return _expectation(lambda p, words: -math.log2(p))

    @property
    def bytes_per_sentence(self) -> float:
        """The exact mean length of a line, its space after each word but the last and its newline included."""
        return _expectation(lambda p, words: sum(len(word) + 1 for word in words))

    @property
    def bits_per_byte(self) -> float:
        """What the perfect model scores on endless text."""
        return self.bits_per_sentence / self.bytes_per_sentence


def sentence(rng: random.Random) -> str:
    """A line of the language, drawn from its distribution."""
    return " ".join(_expand("S", rng)) + "\n"


def bits(text: str) -> float:
    """-log2 of the exact probability of the lines of `text`; infinite where the grammar cannot make them."""
    return sum(_bits(tuple(line.split(" "))) for line in text.splitlines())


def _expand(symbol: str, rng: random.Random) -> list[str]:
    if symbol not in RULES:
        return [symbol]
    chances, expansions = zip(*RULES[symbol])
    (chosen,) = rng.choices(expansions, chances)
    return [word for child in chosen for word in _expand(child, rng)]


def _expectation(value) -> float:
    """The mean over derivations of S of the sum of `value(p, words of the rule)` over the rules used.

    E[A] = sum over rules p (value + sum over their symbols E[B]) is linear in E, recursion included.
    """
    names = sorted(RULES)
    index = {name: i for i, name in enumerate(names)}
    use = np.zeros((len(names), len(names)))
    own = np.zeros(len(names))
    for name, rules in RULES.items():
        for p, symbols in rules:
            own[index[name]] += p * value(p, [s for s in symbols if s not in RULES])
            for s in symbols:
                if s in RULES:
                    use[index[name], index[s]] += p
    return float(np.linalg.solve(np.eye(len(names)) - use, own)[index["S"]])


def _bits(words: tuple[str, ...]) -> float:
    @lru_cache(None)
    def ends(symbol: str, start: int) -> tuple[tuple[int, float], ...]:
        """(end, probability) of every way in which `symbol` can begin at `start`."""
        if symbol not in RULES:
            return ((start + 1, 1.0),) if start < len(words) and words[start] == symbol else ()
        total: dict[int, float] = {}
        for p, symbols in RULES[symbol]:
            reached = {start: p}
            for child in symbols:
                after: dict[int, float] = {}
                for at, q in reached.items():
                    for end, r in ends(child, at):
                        after[end] = after.get(end, 0.0) + q * r
                reached = after
            for end, q in reached.items():
                total[end] = total.get(end, 0.0) + q
        return tuple(total.items())

    p = dict(ends("S", 0)).get(len(words), 0.0)
    return -math.log2(p) if p else math.inf
