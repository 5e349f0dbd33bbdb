"""The columns of an ablation's table, the same on the terminal and in the report, and how numbers are written."""

import dataclasses
from collections.abc import Callable

from jaxeff.lab.results import Decode, Results, Row
from jaxeff.lab.statistics import Interval

NONE = "\u2013"
MINUS = "\u2212"


@dataclasses.dataclass(frozen=True)
class Column:
    """Heading, unit, what it means, and the text of a cell given the row and the baseline's row.

    quality: whether it belongs to what a model is and achieves, rather than to what it costs.
    """

    title: str
    unit: str
    meaning: str
    cell: Callable[[Row, Row | None], str]
    quality: bool = False


def columns(results: Results) -> list[Column]:
    """The columns of the table; decoding is shown at the shortest and the longest context that was measured."""
    return [
        Column("parameters", "", "number of trained parameters", lambda row, _: si(row.n_parameters), True),
        Column(
            "FLOPs",
            "per token",
            "floating-point operations of a training step (forward, backward, update) per token, counted in the program that runs",
            lambda row, _: si(row.flops_per_token),
            True,
        ),
        Column(
            results.score_words,
            "test",
            f"on the test split, {better(results)} is better; mean over seeds with its 95 % interval",
            lambda row, _: interval_text(row.score),
            True,
        ),
        Column(
            f"difference to {results.baseline}",
            results.score_words,
            f"paired by seed, with its 95 % interval; {'above' if results.higher_is_better else 'below'} zero is better",
            lambda row, base: interval_text(row.difference(base), sign=True),
            True,
        ),
        *_others(results),
        Column(
            "best lr",
            "",
            f"learning rate with the best {results.score_words} on the validation split; * marks an end of the sweep",
            lambda row, _: f"{row.best_lr:g}" + ("*" if row.lr_at_edge else ""),
            True,
        ),
        Column(
            "training",
            "tokens/s",
            "tokens of text trained on per second, compilation and evaluation left out",
            lambda row, _: si(row.tokens_per_s),
        ),
        *_decoding(results),
        Column(
            "memory",
            "training",
            "temporary memory of the compiled training step, beside parameters, optimizer state and batch",
            lambda row, _: binary(row.memory_bytes),
        ),
    ]


def _others(results: Results) -> list[Column]:
    def at(name: str) -> Callable[[Row, Row | None], str]:
        return lambda row, _: interval_text(row.score_on(name))

    meaning = "the same models on the test split of other data, {}; mean over seeds with its 95 % interval"
    return [Column(f"on {name}", results.score_words, meaning.format(name), at(name), True) for name in results.others]


def better(results: Results) -> str:
    """Which way is better."""
    return "higher" if results.higher_is_better else "lower"


def _decoding(results: Results) -> list[Column]:
    contexts = next(([d.context for d in row.decode] for row in results.rows if row.decode), [])
    ends = [contexts[0], contexts[-1]] if len(contexts) > 1 else contexts

    def at(context: int, text: Callable[[Decode], str]) -> Callable[[Row, Row | None], str]:
        return lambda row, _: next((text(d) for d in row.decode if d.context == context), NONE)

    first = "time to the first token after a prompt of {:,} tokens, one sequence"
    further = "time per further token after {:,} tokens, one sequence"
    state = "bytes kept between tokens for one sequence of {:,} tokens"
    return (
        [
            Column(f"1st token at {c:,}", "ms", first.format(c), at(c, lambda d: milliseconds(d.first_token_s)))
            for c in ends
        ]
        + [
            Column(f"decoding at {c:,}", "ms/token", further.format(c), at(c, lambda d: milliseconds(d.token_s)))
            for c in ends
        ]
        + [Column(f"state at {c:,}", "", state.format(c), at(c, lambda d: binary(d.state_bytes))) for c in ends[-1:]]
    )


def si(value: float | None, digits: int = 3) -> str:
    """A number with a decimal prefix: 1234567 -> "1.23 M"."""
    if value is None:
        return NONE
    for factor, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * factor:
            return f"{value / factor:#.{digits}g}".rstrip(".") + prefix
    return f"{value:.{digits}g}"


def binary(n_bytes: float | None) -> str:
    """A number of bytes with a binary prefix: 1536 -> "1.5 KiB"."""
    if n_bytes is None:
        return NONE
    for factor, prefix in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.{4 if n_bytes >= 1000 * factor else 3}g} {prefix}"
    return f"{n_bytes:.0f} B"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds with three significant digits."""
    return NONE if seconds is None else f"{seconds * 1e3:#.3g}".rstrip(".")


def interval_text(interval: Interval | None, digits: int = 3, sign: bool = False) -> str:
    """The mean and, where there is an interval, half its length after a plus-minus sign."""
    if interval is None:
        return NONE
    mean = f"{interval.mean:{'+' if sign else ''}.{digits}f}".replace("-", MINUS)
    return mean if interval.half is None else f"{mean} \u00b1 {interval.half:.{digits}f}"
