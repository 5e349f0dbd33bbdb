"""Time of one decode step as the context grows. B batch, T time."""

import jax

from jaxeff.bench.lists import numbers
from jaxeff.bench.record import record
from jaxeff.core.errors import lookup
from jaxeff.core.spec import init
from jaxeff.evaluate.decoding import Decoding
from jaxeff.evaluate.timing import alternate, seconds, summary
from jaxeff.mixers.registry import MIXERS
from jaxeff.models.block import Block
from jaxeff.models.lm import LM
from jaxeff.models.stack import Stage


def decode(
    mixers: str = "linear,gqa",
    contexts: str = "64,128,256,512,1024",
    d_model: int = 256,
    layers: int = 4,
    batch: int = 1,
    tokens: int = 32,
    rounds: int = 7,
) -> dict:
    """Milliseconds a token after a prompt of each length, and of reading that prompt, for each mixer.

    One clock covers `tokens` decode steps in one jitted loop after a prefill outside it, another the prefill with the first token;
    mixers and contexts take turns.
    """
    lengths = numbers(contexts)
    clocks, prefills = {}, {}
    for name in mixers.split(","):
        lm = LM(vocab_size=1024, d_model=d_model, stages=(Stage((Block(lookup(MIXERS, name, "mixer")()),), layers),))
        params = jax.jit(lambda lm=lm: init(lm.specs(), jax.random.key(0)))()
        for n in lengths:
            decoding = Decoding(lm, params, n, tokens, batch)
            clocks[name, n] = lambda run=decoding.further_tokens: seconds(run)
            prefills[name, n] = lambda run=decoding.first_token: seconds(run)
    reading = summary(alternate(prefills, rounds))
    times = summary(alternate(clocks, rounds))
    rows = [
        {
            "mixer": name,
            "context": n,
            "ms_per_token": 1e3 * times[name, n][0] / tokens,
            "minimum_ms": 1e3 * times[name, n][1] / tokens,
            "prefill_ms": 1e3 * reading[name, n][0],
            "minimum_prefill_ms": 1e3 * reading[name, n][1],
        }
        for name, n in clocks
    ]
    first, last = lengths[0], lengths[-1]
    # Minima: the least disturbed of interleaved runs, so that the curve is the model's and not the machine's.
    growth = {name: times[name, last][1] / times[name, first][1] for name in mixers.split(",")}
    ours = mixers.split(",")[0]
    return record(
        "decode",
        ours=1e3 * times[ours, last][1] / tokens,
        peer=1e3 * times[ours, first][1] / tokens,
        unit="ms per token",
        ratio=growth[ours],
        rows=rows,
        growth=growth,
        meaning=f"{ours}: time a token at a context of {last} over that at {first}; 1 is flat",
    )
