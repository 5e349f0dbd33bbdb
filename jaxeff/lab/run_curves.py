"""The curves of one training run over the tokens it has read, to stand in its page."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from jaxeff.lab.figures import smooth
from jaxeff.lab.folders import Folder, curve, words
from jaxeff.lab.plots import Panel, Plot, look

MANY = 50  # logged points from which a smoothed line is drawn too
MARKED = 40  # evaluations up to which each has a mark


def plot(run: Folder, log: Sequence[dict[str, Any]]) -> Plot | None:
    """Training loss, and the validation score where it was evaluated; None where nothing was logged."""
    loss, score = curve(log, "loss"), curve(log, f"eval_{run.score_name}")
    panels = [_loss(loss)] if loss else []
    if score:
        panels.append(_score(run, score))
    if not panels:
        return None
    return Plot("curves", "Curves of the run over tokens", _caption(loss, score), tuple(panels), (None,))


def width(points: Sequence[Any]) -> int:
    """Of the mean that smooths so many points, 1 where they are shown as they are."""
    return len(points) // 25 // 2 * 2 + 1 if len(points) >= MANY else 1


def _caption(loss: Sequence[Any], score: Sequence[Any]) -> str:
    said = []
    if loss:
        n = width(loss)
        smoothed = (
            f"The strong line is a centred mean over {n} logged steps, the faint one each of them." if n > 1 else ""
        )
        said += ["Training loss of the logged steps, each on its own batch.", smoothed or "It is not smoothed."]
    said.append(
        f"Validation: {len(score)} evaluation{'s' * (len(score) != 1)}, not smoothed."
        if score
        else "No evaluation yet."
    )
    return " ".join(said)


def _loss(points: list[tuple[float, float]]) -> Panel:
    tokens, values = map(np.array, zip(*points, strict=True))

    def draw(axes: Axes):
        n = width(points)
        if n > 1:
            axes.plot(tokens, values, **look(0) | {"alpha": 0.35, "linewidth": 0.8})
        axes.plot(tokens, smooth(values, n), **look(0))
        # The first twentieth is the fall from the random model, against which nothing else could be seen.
        late = values[len(values) // 20 :] if n > 1 else values
        margin = 0.05 * (late.max() - late.min()) or 0.05
        axes.set_ylim(late.min() - margin, late.max() + margin)
        _label(axes, "nats per token")

    return Panel("Training loss", f"{_ends(points)} nats per token.", draw)


def _score(run: Folder, points: list[tuple[float, float]]) -> Panel:
    name = words(run.score_name).replace("$", r"\$")  # no formula to matplotlib

    def draw(axes: Axes):
        mark = {"marker": "o", "markersize": 4.5} if len(points) <= MARKED else {}
        axes.plot(*zip(*points, strict=True), **look(1) | {"linestyle": "solid"} | mark)
        _label(axes, f"{name} ({'higher' if run.higher_is_better else 'lower'} is better)")

    return Panel(f"Validation {name}", f"{_ends(points)} {words(run.score_name)}.", draw)


def _label(axes: Axes, unit: str):
    axes.set(xlabel="tokens trained on", ylabel=unit)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.patch.set_alpha(0)  # the page's own ground


def _ends(points: Sequence[tuple[float, float]]) -> str:
    (first, begin), (last, end) = points[0], points[-1]
    return f"from {begin:.3f} at {first:,.0f} tokens to {end:.3f} at {last:,.0f}"
