"""The report on a dark screen, a phone and paper, with two models and with sixteen, and axes that say what they are."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from jaxeff.lab import figures, plots, report
from jaxeff.lab.columns import columns, digits
from jaxeff.lab.finding import findings
from jaxeff.lab.style import CSS
from tests.lab.made_up import made_up

LONG = ("mha", "mqa-of-4-heads", *(f"hybrid-mamba2-gqa-{i}" for i in range(14)))


def spread(n: int, **more):
    """Results of n models whose costs lie far apart, scored on other data too."""
    results = made_up(names=LONG[:n], **more)
    rows = [
        dataclasses.replace(
            row,
            tokens_per_s=row.tokens_per_s * 1.4**i,
            decode=tuple(dataclasses.replace(d, state_bytes=d.state_bytes << i % 4) for d in row.decode),
            others={"prose of old": {seed: 3 - value for seed, value in row.test.items()}},
        )
        for i, row in enumerate(results.rows)
    ]
    return dataclasses.replace(results, rows=tuple(rows))


@pytest.fixture(scope="module", params=[2, 16])
def drawn(request):
    return figures.plots(spread(request.param))


def boxes(axis, renderer):
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high and tick.label1.get_text()]
    return [tick.label1.get_window_extent(renderer) for tick in ticks]


def made(plot):
    """The plot as a file, and each of its panels as in the page."""
    yield plots.whole(plot)
    for panel in plot.panels:
        yield plots.figure(plots.PANEL, lambda made, panel=panel: plots._draw(panel, made.subplots()))


def test_no_text_lies_on_other_text_or_on_the_axes(drawn):
    for figure in itertools.chain.from_iterable(map(made, drawn)):
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        legends = [legend.get_window_extent(renderer) for legend in figure.legends]
        for axes in figure.axes:
            inside = axes.get_window_extent(renderer).padded(-0.5)
            ticks = [boxes(axis, renderer) for axis in (axes.xaxis, axes.yaxis)]
            assert all(len(found) >= 2 for found in ticks)
            labels = [axes.xaxis.label, axes.yaxis.label, axes._left_title]
            words = [*itertools.chain(*ticks), *(text.get_window_extent(renderer) for text in labels), *legends]
            assert not [pair for pair in itertools.combinations(words, 2) if pair[0].overlaps(pair[1])]
            assert not [box for box in words if box.overlaps(inside)]
            assert all(
                figure.bbox.padded(1).containsx(x) and figure.bbox.padded(1).containsy(y)
                for box in words
                for x, y in box.corners()
            )
        titles = [axes._left_title.get_window_extent(renderer) for axes in figure.axes]
        assert not [pair for pair in itertools.combinations(titles, 2) if pair[0].overlaps(pair[1])]


def test_sixteen_models_look_different():
    assert len({(plots.look(i)["color"], str(plots.look(i)["linestyle"])) for i in range(16)}) == 16
    assert len({(plots.look(i)["color"], plots.marker(i)) for i in range(16)}) == 16
    assert len(plots.COLOURS) == len(plots.ON_DARK) == len(set(plots.COLOURS)) == len(set(plots.ON_DARK))


def luminance(colour: str) -> float:
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize(("colours", "ground"), [(plots.COLOURS, "#ffffff"), (plots.ON_DARK, "#14171b")])
def test_colours_stand_out_from_the_page(colours, ground):
    for colour in colours:
        low, high = sorted((luminance(colour), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) > 3


def test_the_legend_names_every_model():
    for plot in figures.plots(spread(16)):
        assert plot.names == LONG
        assert len({plots.key(plot, i) for i in range(16)}) == 16
        drawn = plots.whole(plot)
        assert [text.get_text() for text in drawn.legends[0].get_texts()] == list(LONG)


def test_colours_are_the_pages_own():
    page = report.page(made_up(names=("mha", "mqa")), figures.plots(made_up(names=("mha", "mqa")))[:2])
    legend = re.findall(r'<ul class="legend">(.*?)</ul>', page, re.DOTALL)
    assert [re.findall(r"</svg>(.*?)</li>", names) for names in legend] == [["mha", "mqa"]] * 2
    assert "@media print" in CSS and "prefers-color-scheme: dark" in CSS and "max-width: 40rem" in CSS
    assert "screen and (prefers-color-scheme: dark)" in CSS, "paper is white"
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.findall(r"(?:fill|stroke): ?#|(?:fill|stroke)=\"#", drawn)
    texts = re.findall(r"<text[^>]*>", drawn)
    assert texts and all("currentColor" in text for text in texts)
    used = set(re.findall(r"var\((--\w+)\)", page))
    rules = CSS.split("@media")
    for declared in (rules[0], rules[1]):
        assert used <= set(re.findall(r"(--\w+):", declared))


def test_every_column_has_one_unit():
    results = spread(16)
    for column in columns(results):
        cells = [column.cell(row, results.baseline_row) for row in results.rows]
        assert not [cell for cell in cells if re.search(r"[A-Za-z]", cell)]
    found = {column.title: column.unit for column in columns(results)}
    assert found["MLP width"] == "" and found["state at 2,048"] == "MiB" and found["training"] == "k tokens/s"


def test_the_page_is_dated_and_says_how_curves_were_smoothed():
    results = made_up()
    assert re.search(r'<time datetime="\d{4}-\d\d-\d\d">', report.page(results, []))
    assert "not smoothed" in figures.loss_curves(results).caption
    steps = list(range(200))
    rows = [
        dataclasses.replace(row, curves={s: (steps, [1.0 + t for t in steps]) for s in row.test})
        for row in results.rows
    ]
    longer = dataclasses.replace(results, rows=tuple(rows))
    assert "moving mean over 9 of the 200 recorded points" in figures.loss_curves(longer).caption


def test_one_seed_claims_no_interval():
    results = made_up(seeds=(0,))
    page = report.page(results)
    words = page[: page.index('<h2 id="method">')]
    assert "95 %" not in words and "bands" not in words and "Points are of one seed" in words
    assert any("One seed each" in line for line in findings(results))
    assert "95 %" in report.tables(made_up())


def test_curves_say_when_learning_rates_differ():
    results = made_up()
    plot = figures.loss_curves(results)
    assert plot.panels[1].title == "Difference to mha (learning rates differ)"
    assert "mha was trained at 0.003, mqa 0.01;" in plot.caption
    same = dataclasses.replace(results, rows=tuple(dataclasses.replace(row, best_lr=1e-3) for row in results.rows))
    plot = figures.loss_curves(same)
    assert plot.panels[1].title == "Difference to mha" and "rates" not in plot.caption


def test_axes_start_at_zero_or_say_what_they_are(drawn):
    for plot in drawn:
        figure = plots.whole(plot)
        for axes in figure.axes:
            for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
                assert axis.label.get_text(), "every axis is labelled"
                assert (scale == "log") == axis.label.get_text().endswith(", log")
        magnified = [axes for axes in figure.axes if axes.get_yscale() == "linear" and axes.get_ylim()[0] > 0]
        assert not magnified or re.search("does not start at zero|[Nn]either axis starts at zero", plot.caption)
        if plot.name in ("cost", "decode"):
            axes = figure.axes if plot.name == "decode" else []
            assert all(a.get_ylim()[0] == 0 for a in axes if a.get_yscale() == "linear")
            assert all(a.get_xlim()[0] == 0 for a in figure.axes if a.get_xscale() == "linear")


def test_times_come_with_their_spread():
    results = made_up()
    assert "no round lies further than 10% from its median" in report.tables(results)
    figure = plots.whole(figures.decode_against_context(results))
    bars = [bar.get_segments()[0][:, 1] for bar in figure.axes[0].collections]
    d = results.rows[0].decode[0]
    assert len(bars) == 9 and np.allclose(bars[0], [1e3 * end for end in d.token_ends])
    assert results == type(results).from_json(results.to_json())
    rows = [
        dataclasses.replace(
            row,
            tokens_per_s_ends=None,
            decode=tuple(dataclasses.replace(d, token_ends=None, first_token_ends=None) for d in row.decode),
        )
        for row in results.rows
    ]
    without = dataclasses.replace(results, rows=tuple(rows))
    assert "was not kept" in report.tables(without) and figures.decode_against_context(without)


def test_short_intervals_are_not_shown_as_nothing():
    results = made_up()
    assert digits(results) == 3
    rows = [dataclasses.replace(row, test={0: 2.0, 1: 2.0 + 1e-5}) for row in results.rows]
    assert digits(dataclasses.replace(results, rows=tuple(rows))) == 5
