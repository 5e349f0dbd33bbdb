"""How plots look and into what they are written: SVG inside the page, SVG and PDF as files.

Colours follow Okabe and Ito (2008), told apart under every common colour blindness; those with a contrast to white below 3 : 1
are replaced by darker ones. Each model also has its own dash pattern and marker, so that a plot printed in grey can be read.
Text stays text. Inside the page, colours are variables of its style sheet, which has lighter ones for a dark page.
"""

import html
import io
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle

COLOURS = ("#0072B2", "#D55E00", "#00875F", "#AA4499", "#222222", "#8C6D00", "#4B3FBF", "#8B2E3F")
ON_DARK = ("#5AB0EE", "#FF8A3D", "#2FC79A", "#E48AD6", "#F0F0F0", "#E0C04A", "#A79CFF", "#FF96A6")
DASHES = (
    "solid",
    (0, (5, 1.5)),
    (0, (1, 1.2)),
    (0, (6, 1.5, 1, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (9, 3)),
    (0, (2, 2)),
    (0, (8, 2, 2, 2, 2, 2)),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK, SOFT, FAINT = "#1b1f24", "#57606a", "#d0d7de"
STYLE = {
    "svg.fonttype": "none", "pdf.fonttype": 42,  # what publishers ask for
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 10,
    "axes.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": SOFT, "axes.labelcolor": INK, "text.color": INK,
    "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlecolor": INK, "axes.grid": True,
    "grid.color": FAINT, "grid.linewidth": 0.6, "xtick.color": SOFT, "ytick.color": SOFT, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "axes.axisbelow": True, "lines.linewidth": 1.8, "legend.frameon": False,
}  # fmt: skip
FONTS = "'DejaVu Sans', Verdana, Helvetica, Arial, sans-serif"
PANEL = (4.4, 3.3)  # inches of a panel in the page
WIDTH = 10.0  # inches of a plot as a file


@dataclass(frozen=True)
class Panel:
    """One pair of axes: what stands above it, its numbers in words, and what draws it."""

    title: str
    describe: str
    draw: Callable[[Axes], None]


@dataclass(frozen=True)
class Plot:
    """Panels side by side that share a legend. names: of the models, None where one is not in it; marks, lines: what stands for a
    model; caption: how to read it."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    names: tuple[str | None, ...]
    marks: bool = True
    lines: bool = True

    @property
    def describe(self) -> str:
        """The numbers of all panels in words."""
        return " ".join(f"{panel.title}: {panel.describe}" for panel in self.panels)


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
    return _svg(name, title, describe, figure(size, draw))


def figure(size: tuple[float, float], draw: Callable[[Figure], None]) -> Figure:
    """`draw` on a new figure of `size` inches in the style of the reports, laid out."""
    with matplotlib.rc_context(STYLE):
        made = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(made)
        made.patch.set_alpha(0)
        draw(made)
        # What is laid out once stays as it is in every format.
        made.draw_without_rendering()
        made.set_layout_engine("none")
    return made


def _svg(name: str, title: str, describe: str, drawn: Figure) -> str:
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        text = io.StringIO()
        drawn.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    body = text.getvalue()
    body = re.sub(r"<metadata>.*?</metadata>", "", body[body.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'href="#', f'href="#{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", FONTS, body)
    head, rest = body.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return (
        f'{head} role="img" aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-desc">{html.escape(describe)}</desc>{rest}'
    )


def inline(plot: Plot) -> list[str]:
    """One <svg> element a panel, in the page's font and with its colours, so that panels wrap on a narrow page."""
    found = []
    for i, panel in enumerate(plot.panels):
        drawn = figure(PANEL, lambda made, panel=panel: _draw(panel, made.subplots()))
        found.append(themed(_svg(f"{plot.name}-{i}", f"{plot.title}: {panel.title}", panel.describe, drawn)))
    return found


def key(plot: Plot, i: int) -> str:
    """The line and the mark of the i-th model as a small <svg> element, for a legend in the page."""
    colour, dashes = f"var(--m{i % len(COLOURS)})", look(i)["linestyle"]
    pattern = "" if dashes == "solid" else " ".join(f"{1.8 * length:g}" for length in dashes[1])
    line = f'<path d="M1 8H45" stroke="{colour}" stroke-width="1.8" stroke-dasharray="{pattern or "none"}"/>'
    style = MarkerStyle(marker(i))
    shape = style.get_path().transformed(style.get_transform()).to_polygons()[0]
    points = " ".join(f"{23 + 8 * x:.1f},{8 - 8 * y:.1f}" for x, y in shape)
    mark = f'<polygon points="{points}" fill="{colour}"/>'
    left, width = (0, 46) if plot.lines else (15, 16)
    box = f'viewBox="{left} 0 {width} 16" width="{width}" height="16"'
    return f'<svg {box} aria-hidden="true">{line * plot.lines}{mark * plot.marks}</svg>'


def _key(plot: Plot, i: int) -> dict:
    style = look(i) if plot.lines else {"color": look(i)["color"], "linestyle": "none"}
    return style | ({"marker": marker(i), "markersize": 6} if plot.marks else {})


def themed(text: str) -> str:
    """SVG text with the page's font, and the style sheet's variables in place of the colours."""
    named = {INK: "currentColor", SOFT: "var(--soft)", FAINT: "var(--line)"}
    named |= {colour: f"var(--m{i})" for i, colour in enumerate(COLOURS)}
    for colour, name in named.items():
        text = re.sub(re.escape(colour), name, text, flags=re.IGNORECASE)
    return text.replace(FONTS, "inherit")


def variables(colours: tuple[str, ...]) -> str:
    """The models' colours as declarations of a style sheet."""
    return " ".join(f"--m{i}: {colour};" for i, colour in enumerate(colours))


def whole(plot: Plot) -> Figure:
    """All panels and the legend in one figure, to be kept as a file."""
    present = [i for i, name in enumerate(plot.names) if name is not None]
    longest = max((len(plot.names[i]) for i in present), default=0)
    # A character takes about 0.08 inches, a handle and the space around it eight of them.
    columns = max(1, min(len(present), int(WIDTH / (0.08 * (longest + 8)))))
    height = 3.5 + 0.22 * -(-len(present) // columns)

    def draw(made: Figure):
        for axes, panel in zip(made.subplots(1, len(plot.panels), squeeze=False)[0], plot.panels, strict=True):
            _draw(panel, axes)
        handles = [Line2D([], [], label=plot.names[i], **_key(plot, i)) for i in present]
        made.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=3.4)

    return figure((WIDTH, height), draw)


def _draw(panel: Panel, axes: Axes):
    panel.draw(axes)
    width = axes.get_figure().get_size_inches()[0] / axes.get_subplotspec().get_gridspec().ncols
    axes.set_title(textwrap.fill(panel.title, max(12, int((width - 0.5) / 0.1))))


def files(plot: Plot) -> dict[str, bytes]:
    """NAME.svg, on a white ground, and NAME.pdf."""
    drawn, pdf = whole(plot), io.BytesIO()
    text = _svg(plot.name, plot.title, plot.describe, drawn).replace("<svg ", '<svg style="background:#fff" ', 1)
    with matplotlib.rc_context(STYLE):
        drawn.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Title": plot.title})
    return {f"{plot.name}.svg": f"{text}\n".encode(), f"{plot.name}.pdf": pdf.getvalue()}
