"""The plots of a report, each drawn from the results alone."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from jaxeff.lab.columns import better, binary, n_seeds, other_rate, si, times_words
from jaxeff.lab.plots import Panel, Plot, look, marker
from jaxeff.lab.results import Decode, Ends, Results, Row

SMOOTHING = 25  # curves are smoothed over this part of the run
WIDE = 8  # costs further apart than this have a logarithmic axis


def plots(results: Results) -> list[Plot]:
    """Those for which there are numbers."""
    makers = (loss_curves, quality_against_cost, quality_on_others, decode_against_context)
    return [plot for make in makers if (plot := make(results)) is not None]


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Centred moving mean over `width` points along the last axis, narrower towards the ends."""
    padded = np.concatenate([np.zeros_like(values[..., :1]), np.cumsum(values, -1)], -1)
    i = np.arange(values.shape[-1])
    reach = np.minimum(np.minimum(i, i[::-1]), width // 2)
    return (padded[..., i + reach + 1] - padded[..., i - reach]) / (2 * reach + 1)


Curve = tuple[np.ndarray, np.ndarray]


def _by_seed(row: Row) -> dict[int, dict[int, float]]:
    return {seed: dict(zip(*curve, strict=True)) for seed, curve in row.curves.items()}


def _width(n: int) -> int:
    """Points that the mean over n points is taken over: an odd number, as the mean is centred."""
    return 2 * (max(1, n // SMOOTHING) // 2) + 1


def _aligned(curves: list[dict[int, float]]) -> Curve:
    """Steps that all curves have, and the values there, [curves, steps], smoothed."""
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    values = np.array([[curve[step] for step in steps] for curve in curves])
    return np.array(steps), smooth(values, _width(len(steps))) if steps else values


def _gaps(row: Row, baseline: Row) -> Curve:
    base = _by_seed(baseline)
    curves = {seed: curve for seed, curve in _by_seed(row).items() if seed in base}
    return _aligned(
        [{t: v - base[seed][t] for t, v in curve.items() if t in base[seed]} for seed, curve in curves.items()]
    )


def _band(axes: Axes, i: int, curve: Curve, shade: float):
    steps, values = curve
    axes.fill_between(steps, values.min(0), values.max(0), color=look(i)["color"], alpha=shade, linewidth=0)
    axes.plot(steps, values.mean(0), **look(i))


def loss_curves(results: Results) -> Plot | None:
    """Training loss, mean and range over seeds, and its difference to the baseline on the same batches."""
    found = {i: _aligned(list(_by_seed(row).values())) for i, row in enumerate(results.rows)}
    found = {i: curve for i, curve in found.items() if len(curve[0])}
    if not found:
        return None
    base = results.baseline_row
    gaps = {} if base is None else {i: _gaps(results.rows[i], base) for i in found}
    gaps = {i: curve for i, curve in gaps.items() if len(curve[0])}
    shade = 0.15 if len(found) <= 6 else 0.06

    def left(axes: Axes):
        for i, curve in found.items():
            _band(axes, i, curve, shade)
        # The first tenth is the fall from the random model, against which nothing else could be seen.
        late = np.concatenate([losses[:, len(steps) // 10 :].ravel() for steps, losses in found.values()])
        margin = 0.03 * (late.max() - late.min())
        axes.set_ylim(late.min() - margin, late.max() + margin)
        axes.set(xlabel="step", ylabel="nats per token")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    def right(axes: Axes):
        for i, curve in gaps.items():
            if results.rows[i] is base:
                axes.axhline(0, **look(i))
            else:
                _band(axes, i, curve, shade)
        axes.set(xlabel="step", ylabel=f"nats per token less those of\n{results.baseline}, same batches")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    name = results.baseline
    ends = "; ".join(f"{results.rows[i].name} ends at {values[:, -1].mean():.3f}" for i, (_, values) in found.items())
    panels = [Panel("Training loss", f"{ends}.", left)]
    if len(gaps) > 1 or gaps and base not in [results.rows[i] for i in gaps]:
        ends = "; ".join(
            f"{results.rows[i].name} ends at {values[:, -1].mean():+.3f}"
            for i, (_, values) in gaps.items()
            if results.rows[i] is not base
        )
        rates = " (learning rates differ)" if any(other_rate(row, base) for row in results.rows) else ""
        panels.append(Panel(f"Difference to {name}{rates}", f"{ends}.", right))
    names = tuple(row.name if i in found else None for i, row in enumerate(results.rows))
    return Plot(
        "loss", "Training loss", _loss_words(results, found, len(panels) > 1), tuple(panels), names, marks=False
    )


def _loss_words(results: Results, found: dict[int, Curve], paired: bool) -> str:
    n, points = n_seeds(results), max(len(steps) for steps, _ in found.values())
    width, base = _width(points), results.baseline_row
    over = (
        f"Lines are means over {n} seeds, bands reach from the lowest to the highest seed" if n > 1 else "One seed each"
    )
    smoothed = (
        f"smoothed by a centred moving mean over {width} of the {points} recorded points, narrower at the ends"
        if width > 1
        else "not smoothed"
    )
    words = (
        f"{over}; {smoothed}. The axis of the loss does not start at zero and leaves out what only the first tenth of the run "
        "reaches."
    )
    if not paired:
        return words
    words += (
        f" Right: the loss less that of {results.baseline} at the same step and seed. Both saw the same batch, so its difficulty "
        "cancels; below zero is better."
    )
    rated = [f"{row.name} {row.best_lr:g}" for row in results.rows if other_rate(row, base)]
    if rated:
        words += (
            f" Learning rates differ: {results.baseline} was trained at {base.best_lr:g}, {', '.join(rated)}; there the "
            "difference during training is that of the rates too."
        )
    return words


SPEED = "Speed of training"


def _short(value: float) -> str:
    """A number with a decimal prefix and no zeros at its end, for a tick."""
    digits, _, prefix = si(value).partition(" ")
    return f"{float(digits):g} {prefix}".strip()


COSTS: tuple[tuple[str, str, Callable[[Row], float | None]], ...] = (
    ("FLOPs of training", "per token", lambda row: row.flops_per_token),
    (SPEED, "tokens per second", lambda row: row.tokens_per_s),
    ("Decode state", "bytes", lambda row: row.decode[-1].state_bytes if row.decode else None),
)


def quality_against_cost(results: Results) -> Plot | None:
    """The score with intervals against each cost, one panel per cost."""
    panels = [_cost_panel(results, *cost) for cost in COSTS if any(cost[2](row) is not None for row in results.rows)]
    if not panels:
        return None
    context = next((f" after {row.decode[-1].context:,} tokens" for row in results.rows if row.decode), "")
    words = (
        f"{_points(results)} Left is cheaper for FLOPs and state ({'of one sequence' + context}), "
        "right is faster for speed (its bars reach over all rounds where these were kept); "
        "costs start at zero unless their axis says log. The axis of the score does not start at zero, so distances along it look "
        "larger than they are."
    )
    return Plot("cost", f"Test {results.score_words} against cost", words, tuple(panels), _names(results), lines=False)


def _names(results: Results) -> tuple[str, ...]:
    return tuple(row.name for row in results.rows)


def _points(results: Results) -> str:
    if n_seeds(results) == 1:
        return "Points are of one seed: how far another one would lie is not known."
    return f"Points are means over {n_seeds(results)} seeds, bars their 95 % intervals."


def _cost_panel(results: Results, title: str, unit: str, cost: Callable[[Row], float | None]) -> Panel:
    known = [(i, row, cost(row)) for i, row in enumerate(results.rows) if cost(row) is not None]
    text = binary if unit == "bytes" else _short

    def draw(axes: Axes):
        for i, row, value in known:
            ends = row.tokens_per_s_ends if title == SPEED else None
            _point(axes, i, value, row.score.mean, yerr=row.score.half, xerr=_reach(value, ends))
        values = [value for *_, value in known]
        log = min(values) > 0 and max(values) > WIDE * min(values)
        if log:
            _logarithmic(axes, "x", min(values), max(values), 2 if unit == "bytes" else 10)
        else:
            axes.set_xlim(0, 1.08 * (max(values) or 1))
            axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: text(v)))
        axes.set(xlabel=f"{unit}{', log' if log else ''}", ylabel=f"{_score(results)}\n({better(results)} is better)")

    words = "; ".join(
        f"{row.name} {row.score.mean:.3f} {results.score_words} at {text(value)}" for _, row, value in known
    )
    return Panel(title, f"{words}; {unit}.", draw)


def _score(results: Results) -> str:
    return f"test {results.score_words}"


def _reach(value: float, ends: Ends | None) -> list[list[float]] | None:
    """How far a bar reaches down and up."""
    return ends and [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]


def _point(axes: Axes, i: int, x: float, y: float, **bars):
    axes.errorbar(x, y, fmt=marker(i), color=look(i)["color"], markersize=7, capsize=3, elinewidth=1.1, **bars)


def _logarithmic(axes: Axes, which: str, low: float, high: float, base: int):
    """A logarithmic axis with at most five ticks, at powers of the base or at 1, 2 and 5 times powers of ten."""
    scale, axis = {"x": (axes.set_xscale, axes.xaxis), "y": (axes.set_yscale, axes.yaxis)}[which]
    scale("log", base=base)
    edge = (high / low) ** 0.08
    axes.set(**{f"{which}lim": (low / edge, high * edge)})
    places = _places(low / edge, high * edge, base)
    axis.set_major_locator(FixedLocator(places))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _places(low: float, high: float, base: int) -> list[float]:
    powers = np.arange(np.floor(np.log(low) / np.log(base)), np.ceil(np.log(high) / np.log(base)) + 1)
    for steps in ((1.0,),) if base == 2 else ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        places = [m * float(base) ** p for p in powers for m in steps if low <= m * float(base) ** p <= high]
        if len(places) <= 6:
            break
    return places[:: -(-len(places) // 6)] if places else [low, high]


def quality_on_others(results: Results) -> Plot | None:
    """The score on other data against that on the models' own, one panel for each; nothing where there are none."""
    if not results.others:
        return None

    def panel(name: str) -> Panel:
        def draw(axes: Axes):
            for i, row in enumerate(results.rows):
                own, other = row.score, row.score_on(name)
                _point(axes, i, own.mean, other.mean, xerr=own.half, yerr=other.half)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.set(
                xlabel=f"{_score(results)} ({better(results)} is better)",
                ylabel=f"{results.score_words} on {name}\n({better(results)} is better)",
            )

        words = (f"{row.name} {row.score.mean:.3f}, and {row.score_on(name).mean:.3f} there" for row in results.rows)
        return Panel(f"What is known of {name}", "; ".join(words) + ".", draw)

    words = (
        "The test score on other data against that on the models' own: what a model still knows, or has forgotten. "
        f"{_points(results)} Neither axis starts at zero."
    )
    return Plot(
        "others",
        f"{results.score_words.capitalize()} on other data",
        words,
        tuple(map(panel, results.others)),
        _names(results),
        lines=False,
    )


DECODING: tuple[tuple[str, str, Callable[[Decode], float], Callable[[Decode], Ends | None]], ...] = (
    ("Time per token", "ms", lambda d: d.token_s * 1e3, lambda d: _ms(d.token_ends)),
    ("Time to first token", "ms", lambda d: d.first_token_s * 1e3, lambda d: _ms(d.first_token_ends)),
    ("Decode state", "bytes", lambda d: d.state_bytes, lambda d: None),
)


def _ms(ends: Ends | None) -> Ends | None:
    return ends and (ends[0] * 1e3, ends[1] * 1e3)


def decode_against_context(results: Results) -> Plot | None:
    """Milliseconds per token and bytes of state against the number of tokens before."""
    rows = [(i, row) for i, row in enumerate(results.rows) if row.decode]
    if not rows:
        return None
    panels = tuple(_decode_panel(rows, *what) for what in DECODING)
    words = (
        "Decoding one sequence: time per token, time to the first token, and bytes kept between tokens, against the tokens before. "
        f"{times_words(results)} Bars reach over all rounds where these were kept. "
        "Axes start at zero unless they say log; the axis of the context is logarithmic."
    )
    names = tuple(row.name if row.decode else None for row in results.rows)
    return Plot("decode", "Decoding against context", words, panels, names)


def _decode_panel(
    rows: Sequence[tuple[int, Row]],
    title: str,
    unit: str,
    value: Callable[[Decode], float],
    ends: Callable[[Decode], Ends | None],
) -> Panel:
    text = binary if unit == "bytes" else "{:g}".format
    values = [v for _, row in rows for d in row.decode for v in (value(d), *(ends(d) or ()))]
    log = min(values) > 0 and max(values) > WIDE * min(values) and title != "Time per token"

    def draw(axes: Axes):
        for i, row in rows:
            places = [d.context for d in row.decode]
            axes.plot(places, [value(d) for d in row.decode], marker=marker(i), markersize=5.5, **look(i))
            for d in row.decode:
                if ends(d):
                    axes.vlines(d.context, *ends(d), color=look(i)["color"], linewidth=1.1)
        contexts = sorted({d.context for _, row in rows for d in row.decode})
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(contexts[:: -(-len(contexts) // 5)], [f"{c:,}" for c in contexts[:: -(-len(contexts) // 5)]])
        if log:
            _logarithmic(axes, "y", min(values), max(values), 2 if unit == "bytes" else 10)
        else:
            axes.set_ylim(0, 1.06 * (max(values) or 1))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: text(v)))
        axes.set(xlabel="tokens of context, log", ylabel=f"{unit}{', log' if log else ''}")

    words = "; ".join(
        f"{row.name} " + ", ".join(f"{text(round(value(d), 3))} after {d.context:,}" for d in row.decode)
        for _, row in rows
    )
    return Panel(title, f"{words} tokens; {unit}.", draw)
