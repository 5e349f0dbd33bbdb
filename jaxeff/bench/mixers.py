"""What each mixer costs alone: forward, a training step, memory, a decoded token. B batch (one), T time, D model."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.bench.lists import numbers
from jaxeff.bench.record import record
from jaxeff.core.errors import lookup
from jaxeff.core.files import write_text
from jaxeff.core.spec import init
from jaxeff.evaluate.flops import memory
from jaxeff.evaluate.timing import alternate, seconds, summary
from jaxeff.mixers.base import bind
from jaxeff.mixers.registry import MIXERS

MIB = 2**20
STEPS = 32  # decoded in one jitted loop


def mixers(
    mixers: str = "all",
    times: str = "256,1024,4096",
    contexts: str = "64,4096",
    d_model: int = 256,
    rounds: int = 3,
    plot: str | None = None,
) -> dict:
    """Tokens a second of every mixer, forward and in training; temporary memory; milliseconds a prompt and a decoded token.

    `mixers` names some of the registry, or all. Training is the gradient with respect to parameters and input of one layer on
    one sequence, for each of `times`; decoding goes on after a prompt of each of `contexts`, which is read
    into a state. `plot` writes an SVG picture.
    """
    names, lengths, prompts = list(MIXERS) if mixers == "all" else mixers.split(","), numbers(times), numbers(contexts)
    rows = []
    for name in names:
        layer = bind(lookup(MIXERS, name, "mixer")(), d_model)
        rows += one(name, layer, lengths, prompts, rounds)
    if plot is not None:
        write_text(plot, drawing(rows, prompts))
    growth = {name: _exponent([row for row in rows if row["mixer"] == name]) for name in names}
    worst = max(growth.values())
    return record(
        "mixers",
        ours=rows[0]["training tokens/s"],
        peer=rows[-1]["training tokens/s"],
        unit="tokens/s",
        ratio=worst,
        rows=rows,
        growth=growth,
        d_model=d_model,
        meaning="the largest exponent of training time in T between the two longest texts; 1 is linear, 2 quadratic",
    )


def one(name: str, layer, lengths, prompts, rounds: int) -> list[dict[str, Any]]:
    """The rows of one mixer: one for each length, decoding in the last of them."""
    params = jax.jit(lambda key: init(layer.specs(), key))(jax.random.key(0))
    forward = jax.jit(lambda params, x_BTD: layer.apply(params, x_BTD).y)
    backward = jax.jit(jax.grad(lambda params, x_BTD: jnp.sum(jnp.sin(layer.apply(params, x_BTD).y)), argnums=(0, 1)))
    clocks, temporary = {}, {}
    for T in lengths:
        x_BTD = jax.random.normal(jax.random.key(1), (1, T, layer.d_model))
        trained = backward.lower(params, x_BTD).compile()
        temporary[T] = memory(trained)["temporary"]
        clocks["forward", T] = lambda x=x_BTD: seconds(lambda: forward(params, x))
        clocks["training", T] = lambda x=x_BTD, f=trained: seconds(lambda: f(params, x))
    for n in prompts:
        read, further = _decoding(layer, params, n)
        clocks["reading", n] = lambda run=read: seconds(run)
        clocks["decoding", n] = lambda run=further: seconds(run)
    least = {what: least for what, (_, least) in summary(alternate(clocks, rounds)).items()}
    rows = [
        {
            "mixer": name,
            "T": T,
            "forward tokens/s": round(T / least["forward", T]),
            "training tokens/s": round(T / least["training", T]),
            "temporary MiB": temporary[T] / MIB,
        }
        for T in lengths
    ]
    rows[-1] |= {f"ms reading {n}": 1e3 * least["reading", n] for n in prompts}
    rows[-1] |= {f"ms/token after {n}": 1e3 * least["decoding", n] / STEPS for n in prompts}
    return rows


def _decoding(layer, params, n: int):
    """Thunks: of reading a prompt of n tokens, and of STEPS decode steps after it."""

    @jax.jit
    def prefill(params, x_BTD):
        out = layer.apply(params, x_BTD, layer.init_state(1, n + STEPS, x_BTD.dtype))
        return out.state, out.y

    @jax.jit
    def further(params, state, x_BTD):
        def step(carry, _):
            state, x_BTD = carry
            out = layer.apply(params, x_BTD, state)
            return (out.state, 0.5 * x_BTD + out.y), None

        return jax.lax.scan(step, (state, x_BTD), None, length=STEPS)[0][1]

    prompt_BTD = jax.random.normal(jax.random.key(2), (1, n, layer.d_model))
    (state, _), x_BTD = prefill(params, prompt_BTD), jnp.ones((1, 1, layer.d_model))
    return lambda: prefill(params, prompt_BTD), lambda: further(params, state, x_BTD)


def _exponent(rows: list[dict[str, Any]]) -> float:
    """log(time ratio) / log(length ratio) of training, between the two longest texts."""
    if len(rows) < 2:
        return float("nan")
    (a, s), (b, t) = ((row["T"], row["T"] / row["training tokens/s"]) for row in rows[-2:])
    return math.log(t / s) / math.log(b / a)


def drawing(rows, prompts) -> str:
    """Training speed against length, and decoding time against context, as one SVG."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    from jaxeff.lab.plots import MARKERS, look, svg

    names = list(dict.fromkeys(row["mixer"] for row in rows))

    def draw(figure):
        left, right = figure.subplots(1, 2)
        for i, name in enumerate(names):
            mine = [row for row in rows if row["mixer"] == name]
            style = look(i) | {"marker": MARKERS[i % len(MARKERS)], "label": name}
            left.plot([row["T"] for row in mine], [row["training tokens/s"] for row in mine], **style)
            right.plot(prompts, [mine[-1][f"ms/token after {n}"] for n in prompts], **style)
        left.set(xscale="log", yscale="log", title="Training", xlabel="tokens of a text", ylabel="tokens/s")
        right.set(xscale="log", yscale="log", title="Decoding", xlabel="tokens before", ylabel="ms per token")
        for axes, places in ((left, sorted({row["T"] for row in rows})), (right, prompts)):
            axes.set_xticks(places, labels=map(str, places))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, place: f"{y:,g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center")

    described = (
        "Left: training speed of each mixer against text length. Right: time of a decoded token against context."
    )
    return svg("mixers", "Mixers", described, (10.5, 4.2), draw)
