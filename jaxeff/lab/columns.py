"""The columns of an ablation's table, the same on the terminal, in the report and in its files, and how numbers are written."""

import dataclasses
import math
from collections.abc import Callable, Iterable

from jaxeff.lab.results import Decode, Results, Row
from jaxeff.lab.statistics import Interval

NONE = "\u2013"
MINUS = "\u2212"
SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
BINARY = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


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
    """The columns of the table, each in one unit; decoding is shown at the shortest and the longest context that was measured."""
    return [
        _number(results, "parameters", "", "number of trained parameters", lambda row: row.n_parameters, quality=True),
        *_varied(results),
        _number(
            results,
            "FLOPs",
            "per token",
            "floating-point operations of a training step (forward, backward, update) per token, counted in the program that runs",
            lambda row: row.flops_per_token,
            quality=True,
        ),
        Column(
            results.score_words,
            "test",
            f"on the test split, {better(results)} is better; {over_seeds(results)}",
            lambda row, _: interval_text(row.score, digits(results)),
            True,
        ),
        Column(
            f"difference to {results.baseline}",
            results.score_words,
            f"paired by seed, {over_seeds(results)}{uncorrected(results)}; "
            f"{'above' if results.higher_is_better else 'below'} zero is better",
            lambda row, base: interval_text(row.difference(base), digits(results), sign=True),
            True,
        ),
        *_p_values(results),
        *_others(results),
        Column(
            "best lr",
            "",
            f"learning rate with the best {results.score_words} on the validation split; * marks an end of the sweep, "
            "beyond which a better one may lie",
            lambda row, _: f"{row.best_lr:g}" + ("*" if row.lr_at_edge else ""),
            True,
        ),
        _number(
            results,
            "training",
            "tokens/s",
            "tokens of text trained on per second, compilation and evaluation left out",
            lambda row: row.tokens_per_s,
        ),
        *_decoding(results),
        _number(
            results,
            "memory per step",
            "",
            "temporary memory of the compiled training step, beside parameters, optimizer state and batch",
            lambda row: row.memory_bytes,
            BINARY,
        ),
    ]


def n_seeds(results: Results) -> int:
    """The most seeds that a model was trained from."""
    return max((len(row.test) for row in results.rows), default=0)


def over_seeds(results: Results) -> str:
    """What a score is taken over; an interval only where there are seeds enough for one."""
    n = n_seeds(results)
    return f"mean over {n} seeds with its 95 % interval" if n > 1 else "of one seed, so with no interval"


def uncorrected(results: Results) -> str:
    """That intervals of differences stand for themselves, where there are several."""
    several = results.n_comparisons > 1 and n_seeds(results) > 1
    return f", not corrected for {results.n_comparisons} comparisons" if several else ""


def digits(results: Results) -> int:
    """Decimals of scores: three, or up to five where an interval is so short that three would show it as nothing."""
    base = results.baseline_row
    found = [interval for row in results.rows for interval in (row.score, row.difference(base)) if interval]
    halves = [interval.half for interval in found if interval.half and interval.half > 1e-9]
    return min(5, max(3, math.ceil(-math.log10(min(halves))))) if halves else 3


def times_words(results: Results) -> str:
    """How times were taken, and how far the rounds of one model lie from their median at most."""
    found = [(row.tokens_per_s, row.tokens_per_s_ends) for row in results.rows]
    found += [(d.first_token_s, d.first_token_ends) for row in results.rows for d in row.decode]
    found += [(d.token_s, d.token_ends) for row in results.rows for d in row.decode]
    far = [max(abs(end / middle - 1) for end in ends) for middle, ends in found if ends and middle]
    apart = (
        f"no round lies further than {max(far):.0%} from its median" if far else "how far these lie apart was not kept"
    )
    return f"Times are medians over rounds in which the models take turns; {apart}."


def other_rate(row: Row, base: Row | None) -> bool:
    """Whether a model was trained at another learning rate than the baseline."""
    return base is not None and row.best_lr != base.best_lr


def _varied(results: Results) -> list[Column]:
    if len({row.varied for row in results.rows}) < 2:
        return []
    field = str(results.protocol.get("vary", "mlp")).rpartition(".")[2].strip("*")
    mlp = "mlp" in str(results.protocol.get("vary", "mlp"))
    meaning = f"the field by which sizes are matched; {NONE} where a model has several values or none"
    title = "MLP width" if mlp else field or "matched by"
    return [
        Column(title, "", meaning, lambda row, _: NONE if row.varied is None else f"{row.varied:,}", True),
    ]


def _p_values(results: Results) -> list[Column]:
    found, n = results.comparisons, results.n_comparisons
    if not found:
        return []
    corrected = f", corrected for {n} comparisons by Holm's method" if n > 1 else ""
    return [
        Column(
            "p",
            "Holm" if n > 1 else "",
            f"of the paired t test of that difference, two-sided{corrected}; a difference is claimed below 0.05",
            lambda row, _: p_text(found[row.name].p_holm) if row.name in found else NONE,
            True,
        )
    ]


def _others(results: Results) -> list[Column]:
    def at(name: str) -> Callable[[Row, Row | None], str]:
        return lambda row, _: interval_text(row.score_on(name), digits(results))

    meaning = "the same models on the test split of other data, {}; {}"
    return [
        Column(f"on {name}", results.score_words, meaning.format(name, over_seeds(results)), at(name), True)
        for name in results.others
    ]


def better(results: Results) -> str:
    """Which way is better."""
    return "higher" if results.higher_is_better else "lower"


def _decoding(results: Results) -> list[Column]:
    contexts = next(([d.context for d in row.decode] for row in results.rows if row.decode), [])
    ends = [contexts[0], contexts[-1]] if len(contexts) > 1 else contexts

    def at(context: int, value: Callable[[Decode], float]) -> Callable[[Row], float | None]:
        return lambda row: next((value(d) for d in row.decode if d.context == context), None)

    first = "time to the first token after a prompt of {:,} tokens, one sequence"
    further = "time per further token after {:,} tokens, one sequence"
    state = "bytes kept between tokens for one sequence of {:,} tokens"
    ms, each = ((1e-3, "ms"),), ((1e-3, "ms/token"),)
    return (
        [
            _number(results, f"1st token at {c:,}", "", first.format(c), at(c, lambda d: d.first_token_s), ms)
            for c in ends
        ]
        + [
            _number(results, f"decoding at {c:,}", "", further.format(c), at(c, lambda d: d.token_s), each)
            for c in ends
        ]
        + [
            _number(results, f"state at {c:,}", "", state.format(c), at(c, lambda d: d.state_bytes), BINARY)
            for c in ends[-1:]
        ]
    )


Prefixes = tuple[tuple[float, str], ...]


def _number(
    results: Results,
    title: str,
    unit: str,
    meaning: str,
    value: Callable[[Row], float | None],
    prefixes: Prefixes = SI,
    quality: bool = False,
) -> Column:
    """A column of numbers in the one unit, and with the one number of decimals, that suits all of them."""
    factor, prefix, decimals = one_unit([value(row) for row in results.rows], prefixes)

    def cell(row: Row, _: Row | None) -> str:
        found = value(row)
        return NONE if found is None else f"{found / factor:,.{decimals}f}"

    return Column(title, f"{prefix} {unit}".strip(), meaning, cell, quality)


def one_unit(values: Iterable[float | None], prefixes: Prefixes) -> tuple[float, str, int]:
    """(factor, name, decimals) with which the smallest of the values has three digits, and the largest no more than six."""
    values = [abs(v) for v in values if v]
    whole = (1.0, "B") if prefixes is BINARY else (1.0, "")
    ladder = [*prefixes] if prefixes[-1][0] < 1 else [*prefixes, whole]
    if not values:
        return (*ladder[-1], 0)
    low, high = min(values), max(values)
    fitting = [step for step in ladder if 0.9995 * step[0] <= low] or ladder[-1:]
    factor, name = fitting[0]
    for larger in reversed(ladder):
        if high / factor >= 99999.5 and larger[0] > factor:
            factor, name = larger
    if all(v % factor == 0 for v in values):
        return factor, name, 0
    return factor, name, min(3, max(0, 2 - math.floor(math.log10(low / factor))))


def si(value: float | None, digits: int = 3) -> str:
    """A number with a decimal prefix: 1234567 -> "1.23 M"."""
    if value is None:
        return NONE
    for factor, prefix in SI:
        if abs(value) >= 0.9995 * factor:
            return f"{value / factor:#.{digits}g}".rstrip(".") + f" {prefix}"
    return f"{value:.{digits}g}"


def binary(n_bytes: float | None) -> str:
    """A number of bytes with a binary prefix: 1536 -> "1.5 KiB"."""
    if n_bytes is None:
        return NONE
    for factor, prefix in BINARY:
        if n_bytes >= factor:
            return f"{n_bytes / factor:.{4 if n_bytes >= 1000 * factor else 3}g} {prefix}"
    return f"{n_bytes:.0f} B"


def p_text(p: float) -> str:
    """A p-value with three decimals, "<0.001" below that."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def interval_text(interval: Interval | None, digits: int = 3, sign: bool = False) -> str:
    """The mean and, where there is an interval, half its length after a plus-minus sign."""
    if interval is None:
        return NONE
    mean = f"{interval.mean:{'+' if sign else ''}.{digits}f}".replace("-", MINUS)
    return mean if interval.half is None else f"{mean} \u00b1 {interval.half:.{digits}f}"
