"""Our greedy generation against a peer's, models and work alike, in turns. B batch, N new tokens."""

import contextlib

import jax
import numpy as np

from jaxeff.bench.lists import numbers
from jaxeff.bench.pairs import PAIRS
from jaxeff.bench.peer import PROGRAMS, Peer
from jaxeff.bench.record import record
from jaxeff.bench.timing import PAUSE, READ_BYTES, read_clock
from jaxeff.core.errors import lookup
from jaxeff.core.spec import count, init
from jaxeff.evaluate.decoding import state_bytes
from jaxeff.evaluate.timing import alternate, seconds, summary
from jaxeff.models.generate import generate as generated

SLOW = 60.0  # seconds


def generate(
    mixers: str = "gqa,mamba,rwkv4",
    batches: str = "1,8",
    d_model: int = 512,
    layers: int = 8,
    vocabulary: int = 8192,
    prompt: int = 128,
    tokens: int = 128,
    peer: str = "hf",
    peer_python: str | None = None,
    rounds: int = 5,
) -> dict:
    """New tokens a second after a prompt, prefill included: ours against the peer's (`hf`: Transformers' `generate` with its cache;
    `none`), float32.

    `mixers` names models of `bench.pairs`, `batches` are numbers of texts at once, both lists with commas. A peer that takes more
    than a minute is asked once. share_of_reading: bytes that our steps have to read, weights and state, over what a product of a
    vector with a matrix of 256 MB reads in the same time.
    """
    lookup(PROGRAMS | {"none": None}, peer, "peer")
    rows, versions = [], {}
    with contextlib.nullcontext() if peer == "none" else Peer(peer, peer_python) as other:
        for name in mixers.split(","):
            pair = lookup(PAIRS, name, "pair of models")
            lm = pair.lm(vocabulary, d_model, layers)
            params = jax.jit(lambda lm=lm: init(lm.specs(), jax.random.key(0)))()
            if other is not None:
                sizes = dict(d_model=d_model, n_layers=layers, vocab_size=vocabulary, batch=1, time=prompt + tokens)
                answer = other.ask(
                    do="setup", name="model", model=pair.peer, dtype="float32", fields=pair.fields(d_model), **sizes
                )
                versions = answer["versions"]
                if answer["n_params"] != count(lm.specs()):
                    raise AssertionError(
                        f"{name}: the peer has {answer['n_params']} parameters, we {count(lm.specs())}"
                    )
            for batch in numbers(batches):
                rows.append(_compared(name, lm, params, batch, prompt, tokens, other, rounds))
            if other is not None:
                other.ask(do="drop", name="model")
    worst = min(rows, key=lambda row: row.get("ratio", 0.0))
    return record(
        "generate",
        ours=worst["ours_per_s"],
        peer=worst.get("peer_per_s"),
        unit="tokens per second",
        ratio=worst.get("ratio"),
        rows=rows,
        peer_versions=versions,
        meaning="our tokens a second over the peer's, medians, where it is least; above 1 we are ahead",
    )


def _compared(name: str, lm, params, batch: int, prompt: int, tokens: int, other: Peer | None, rounds: int) -> dict:
    """A row of the table."""
    prompt_BT = np.random.default_rng(0).integers(0, lm.vocab_size, (batch, prompt))
    clocks = {"ours": lambda: seconds(lambda: generated(lm, params, prompt_BT, tokens)), "read": read_clock()}
    if other is not None:
        request = dict(do="generate", name="model", prompt=prompt_BT.tolist(), tokens=tokens)
        clocks["peer"] = lambda: other.ask(**request)["seconds"]
    slow = clocks.pop("peer")() if other is not None else 0.0
    if 0 < slow < SLOW:
        clocks["peer"] = lambda: other.ask(**request)["seconds"]
    times = {"peer": (slow, slow)} | summary(alternate(clocks, rounds, pause=PAUSE))
    ours = times["ours"][0]
    per_step = 4 * count(lm.specs()) + state_bytes(lm, prompt + tokens // 2, batch)
    row = {"model": name, "batch": batch, "ours_per_s": batch * tokens / ours}
    if other is not None:
        row |= {"peer_per_s": batch * tokens / times["peer"][0], "ratio": times["peer"][0] / ours}
    return row | {"share_of_reading": per_step * tokens / ours * times["read"][0] / READ_BYTES}
