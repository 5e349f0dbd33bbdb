"""The plots of a report, as SVG text to stand inside a page.

Colours follow Okabe and Ito (2008), told apart under every common colour blindness; those with a contrast to white below 3 : 1
are replaced by darker ones. Each model also has its own dash pattern and marker, so that a plot printed in grey can be read.
Text stays text, in the page's own font.
"""

import html
import io
import re
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from jaxeff.lab.columns import binary, si
from jaxeff.lab.results import Results, Row

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#000000", "#8C6D00", "#2F4B9B")
DASHES = (
    "solid",
    (0, (5, 1.5)),
    (0, (1, 1.2)),
    (0, (6, 1.5, 1, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (9, 3)),
    (0, (2, 2)),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT = "#1b1f24", "#d0d7de"
STYLE = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#57606a", "axes.labelcolor": INK, "text.color": INK,
    "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.grid": True, "grid.color": FAINT,
    "grid.linewidth": 0.6, "xtick.color": "#57606a", "ytick.color": "#57606a", "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.axisbelow": True, "lines.linewidth": 1.8, "legend.frameon": False,
}  # fmt: skip


WIDTH = 9.6  # inches


def look(i: int) -> dict:
    """Colour and dash pattern of the i-th model; when the colours begin anew, each has the next one's dashes."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[(i + i // len(COLOURS)) % len(DASHES)]}


def marker(i: int) -> str:
    """The marker of the i-th model."""
    return MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]


def svg(name: str, title: str, describe: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """`draw` on a figure of `size` inches, as an <svg> element whose title and description a screen reader speaks.

    Identifiers start with `name`, so that several plots can stand in one page.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    body = text.getvalue()
    body = re.sub(r"<metadata>.*?</metadata>", "", body[body.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'href="#', f'href="#{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", body)
    head, rest = body.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return (
        f'{head} role="img" aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-desc">{html.escape(describe)}</desc>{rest}'
    )


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Centred moving mean over `width` points along the last axis, narrower towards the ends."""
    padded = np.concatenate([np.zeros_like(values[..., :1]), np.cumsum(values, -1)], -1)
    i = np.arange(values.shape[-1])
    reach = np.minimum(np.minimum(i, i[::-1]), width // 2)
    return (padded[..., i + reach + 1] - padded[..., i - reach]) / (2 * reach + 1)


def _columns(results: Results) -> int:
    """Of a legend as wide as the figure: a character takes about 0.08 inches, a handle and the space around it eight of them."""
    longest = max((len(row.name) for row in results.rows), default=0)
    return max(1, min(len(results.rows), int(WIDTH / (0.08 * (longest + 8)))))


def _size(results: Results, height: float) -> tuple[float, float]:
    """`height` is that of the panels with a legend of one line."""
    return WIDTH, height + 0.22 * (-(-len(results.rows) // _columns(results)) - 1)


def _legend(figure: Figure, results: Results, **more):
    """One legend below all panels, each name once."""
    found = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=_columns(results), **more)


def _by_seed(row: Row) -> dict[int, dict[int, float]]:
    return {seed: dict(zip(*curve, strict=True)) for seed, curve in row.curves.items()}


def _aligned(curves: list[dict[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps that all curves have, and the values there, [curves, steps], smoothed over a 25th of the run."""
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    values = np.array([[curve[step] for step in steps] for curve in curves])
    return np.array(steps), smooth(values, max(1, len(steps) // 25)) if steps else values


def _band(axes, i: int, name: str, steps: np.ndarray, values: np.ndarray):
    axes.fill_between(steps, values.min(0), values.max(0), color=look(i)["color"], alpha=0.15, linewidth=0)
    axes.plot(steps, values.mean(0), label=name, **look(i))


def loss_curves(results: Results) -> str:
    """Training loss, mean and range over seeds, and its difference to the baseline on the same batches."""
    found = {row.name: _aligned(list(_by_seed(row).values())) for row in results.rows}
    base = results.baseline_row and _by_seed(results.baseline_row)

    def draw(figure: Figure):
        left, right = figure.subplots(1, 2)
        for i, row in enumerate(results.rows):
            steps, losses = found[row.name]
            if len(steps):
                _band(left, i, row.name, steps, losses)
            if row.name == results.baseline:
                right.axhline(0, **look(i))
            elif base:
                curves = {seed: curve for seed, curve in _by_seed(row).items() if seed in base}
                gaps = [
                    {t: v - base[seed][t] for t, v in curve.items() if t in base[seed]}
                    for seed, curve in curves.items()
                ]
                steps, gap = _aligned(gaps)
                if len(steps):
                    _band(right, i, row.name, steps, gap)
        # The first tenth is the fall from the random model, against which nothing else could be seen.
        late = [losses[:, len(steps) // 10 :] for steps, losses in found.values() if len(steps)]
        if late:
            low, high = min(map(np.min, late)), max(map(np.max, late))
            left.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
        left.set(title="Training loss", xlabel="step", ylabel="nats per token")
        right.set(
            title=f"Less the loss of {results.baseline} on the same batches", xlabel="step", ylabel="nats per token"
        )
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _legend(figure, results, handlelength=3.2)

    ends = "; ".join(
        f"{name} ends at {losses[:, -1].mean():.3f}" for name, (steps, losses) in found.items() if len(steps)
    )
    describe = f"Lines are means over seeds, bands the range from the lowest to the highest seed. {ends}."
    return svg("loss", "Training loss against step", describe, _size(results, 3.7), draw) if ends else ""


def quality_against_cost(results: Results) -> str:
    """Bits per byte with intervals against each cost, one panel per cost."""
    costs: list[tuple[str, str, Callable[[Row], float | None]]] = [
        ("FLOPs of training", "per token", lambda row: row.flops_per_token),
        ("Speed of training", "tokens per second", lambda row: row.tokens_per_s),
        ("Decode state", "bytes", lambda row: row.decode[-1].state_bytes if row.decode else None),
    ]
    costs = [cost for cost in costs if any(cost[2](row) is not None for row in results.rows)]

    def draw(figure: Figure):
        panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
        for axes, (title, unit, cost) in zip(panels, costs, strict=True):
            for i, row in enumerate(results.rows):
                if cost(row) is None:
                    continue
                interval, style = row.score, look(i)
                axes.errorbar(cost(row), interval.mean, yerr=interval.half, fmt=marker(i), color=style["color"],
                              markersize=7.5, capsize=3.5, elinewidth=1.2, label=row.name)  # fmt: skip
            wide = [cost(row) for row in results.rows if cost(row)]
            if wide and max(wide) > 8 * min(wide):
                axes.set_xscale("log", base=2 if unit == "bytes" else 10)
                axes.xaxis.set_minor_formatter(NullFormatter())
            else:
                axes.margins(x=0.15)
                axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(
                FuncFormatter(lambda v, _, unit=unit: binary(v) if unit == "bytes" else si(v))
            )
            axes.set(title=title, xlabel=unit)
        panels[0].set_ylabel(
            f"test {results.score_words}\n({'higher' if results.higher_is_better else 'lower'} is better)"
        )
        _legend(figure, results)

    def words(row: Row) -> str:
        found = [(title, cost(row), unit) for title, unit, cost in costs if cost(row) is not None]
        texts = [
            f"{title} {binary(value) if unit == 'bytes' else f'{si(value)} {unit}'}" for title, value, unit in found
        ]
        return f"{row.name}: {row.score.mean:.3f} {results.score_words}, " + ", ".join(texts)

    describe = "Points are means over seeds, bars their 95 % intervals. " + "; ".join(map(words, results.rows)) + "."
    return svg("cost", f"Test {results.score_words} against cost", describe, _size(results, 3.6), draw) if costs else ""


def quality_on_others(results: Results) -> str:
    """The score on other data against that on the models' own, one panel for each; nothing where there are none."""
    names = results.others
    way = f"({'higher' if results.higher_is_better else 'lower'} is better)"

    def draw(figure: Figure):
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for i, row in enumerate(results.rows):
                own, other = row.score, row.score_on(name)
                axes.errorbar(own.mean, other.mean, xerr=own.half, yerr=other.half, fmt=marker(i), color=look(i)["color"],
                              markersize=7.5, capsize=3.5, elinewidth=1.2, label=row.name)  # fmt: skip
            axes.set(
                title=f"What is known of {name}",
                xlabel=f"test {results.score_words} {way}",
                ylabel=f"{results.score_words} on {name}\n{way}",
            )
        _legend(figure, results)

    words = (
        f"{row.name}: {row.score.mean:.3f}, " + ", ".join(f"{row.score_on(name).mean:.3f} on {name}" for name in names)
        for row in results.rows
    )
    describe = f"Points are means over seeds, bars their 95 % intervals. {'; '.join(words) if names else ''}."
    return svg("others", f"{results.score_words} on other data", describe, _size(results, 4.2), draw) if names else ""


def decode_against_context(results: Results) -> str:
    """Milliseconds per token and bytes of state against the number of tokens before."""
    rows = [(i, row) for i, row in enumerate(results.rows) if row.decode]

    def draw(figure: Figure):
        left, middle, right = figure.subplots(1, 3)
        for i, row in rows:
            contexts = [d.context for d in row.decode]
            style = look(i) | {"marker": marker(i), "markersize": 5.5}
            left.plot(contexts, np.array([d.token_s * 1e3 for d in row.decode]), label=row.name, **style)
            middle.plot(contexts, np.array([d.first_token_s * 1e3 for d in row.decode]), **style)
            right.plot(contexts, np.array([d.state_bytes for d in row.decode]), **style)
        left.set(title="Time per token", ylabel="ms")
        middle.set(title="Time to first token", ylabel="ms")
        right.set(title="Decode state", ylabel="bytes")
        _ticks(left, middle, right, ticks=[d.context for d in rows[0][1].decode] if rows else [])
        _legend(figure, results, handlelength=3.2)

    def words(row: Row) -> str:
        at = (
            f"{d.token_s * 1e3:.3g} ms per token and {binary(d.state_bytes)} after {d.context:,} tokens"
            for d in row.decode
        )
        return f"{row.name}: " + ", ".join(at)

    describe = "One sequence. Time per token and state: " + "; ".join(words(row) for _, row in rows) + "."
    return svg("decode", "Decoding against context length", describe, _size(results, 3.4), draw) if rows else ""


def _ticks(left, middle, right, ticks: Sequence[int]):
    for axes in (left, middle, right):
        axes.set(xlabel="tokens of context")
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
    for axes, text in ((left, "{:g}".format), (middle, "{:g}".format), (right, binary)):
        _, high = axes.get_ylim()
        low = min(line.get_ydata().min() for line in axes.lines) if axes.lines else high
        # Powers of two where the models are far apart, else from zero, so that lengths compare.
        if high > 8 * low > 0 and axes is not left:
            axes.set_yscale("log", base=2)
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _, text=text: text(v)))
