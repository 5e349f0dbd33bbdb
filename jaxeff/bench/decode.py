"""Time of one decode step as the context grows. B batch, T time."""

import functools

import jax
import jax.numpy as jnp

from jaxeff.bench.record import record
from jaxeff.bench.timing import alternate, seconds, summary
from jaxeff.core.spec import init
from jaxeff.mixers.registry import MIXERS
from jaxeff.models.block import Block
from jaxeff.models.lm import LM


def generate(
    mixers: str = "linear,gqa",
    contexts: str = "64,128,256,512,1024",
    d_model: int = 256,
    layers: int = 4,
    batch: int = 1,
    tokens: int = 32,
    rounds: int = 7,
) -> dict:
    """Milliseconds a token after a prompt of each length, for each mixer.

    The clock covers `tokens` decode steps in one jitted loop after a prefill outside it; the contexts take turns.
    """
    lengths = [int(n) for n in contexts.split(",")]
    clocks = {}
    for name in mixers.split(","):
        lm = LM(vocab_size=1024, d_model=d_model, pattern=(Block(MIXERS[name]()),), repeats=layers)
        params = jax.jit(lambda lm=lm: init(lm.specs(), jax.random.key(0)))()
        for n in lengths:
            clocks[name, n] = decode_clock(lm, params, n, batch, tokens)
    times = summary(alternate(clocks, rounds, pause=0.0))
    rows = [
        {
            "mixer": name,
            "context": n,
            "ms_per_token": 1e3 * times[name, n][0] / tokens,
            "minimum_ms": 1e3 * times[name, n][1] / tokens,
        }
        for name, n in clocks
    ]
    first, last = lengths[0], lengths[-1]
    # Minima: the least disturbed of interleaved runs, so that the curve is the model's and not the machine's.
    growth = {name: times[name, last][1] / times[name, first][1] for name in mixers.split(",")}
    ours = mixers.split(",")[0]
    return record(
        "generate",
        ours=1e3 * times[ours, last][1] / tokens,
        peer=1e3 * times[ours, first][1] / tokens,
        unit="ms per token",
        ratio=growth[ours],
        rows=rows,
        growth=growth,
        meaning=f"{ours}: time a token at a context of {last} over that at {first}; 1 is flat",
    )


def decode_clock(lm: LM, params, context: int, batch: int, tokens: int):
    """A clock of `tokens` greedy decode steps after `context` tokens of prompt."""
    prompt_BT = jax.random.randint(jax.random.key(1), (batch, context), 0, lm.vocab_size)

    @jax.jit
    def prefill(params):
        logits_BTV, state = lm.apply(params, prompt_BT, lm.init_state(batch, context + tokens, jnp.float32))
        return jnp.argmax(logits_BTV[:, -1:], axis=-1), state

    @functools.partial(jax.jit)
    def decode(params, token_B1, state):
        def step(carry, _):
            token_B1, state = carry
            logits_B1V, state = lm.apply(params, token_B1, state)
            return (jnp.argmax(logits_B1V, axis=-1), state), None

        return jax.lax.scan(step, (token_B1, state), None, length=tokens)[0][0]

    start = jax.block_until_ready(prefill(params))
    return lambda: seconds(lambda: decode(params, *start))
