"""Curves in characters: `chart([(x, y), ...], [(x, y), ...], ...)` of two, and `sparkline([y, ...])` of one in a line."""

import math
from collections.abc import Sequence

Curve = Sequence[tuple[float, float]]
MARKS, BOTH = "ox", "#"
BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def chart(
    curves: Sequence[Curve], x_form: str = "{:,.0f}", y_form: str = "{:.3f}", width: int = 60, height: int = 12
) -> str:
    """The curves over common axes as lines of text: the first as `o`, the second as `x`, and `#` where they meet.

    Between two points there is a straight line. width, height: of the field of marks, without the axes' numbers. Raises ValueError
    when no curve has a point.
    """
    points = [point for curve in curves for point in curve]
    if not points:
        raise ValueError("a chart needs a point")
    (left, right), (low, high) = ((min(values), max(values)) for values in zip(*points, strict=True))
    field = [[" "] * width for _ in range(height)]
    for mark, curve in zip(MARKS, curves):
        for column, row in _cells(curve, left, right, low, high, width, height):
            field[row][column] = mark if field[row][column] in (" ", mark) else BOTH
    return "\n".join(_framed(field, y_form.format(high), y_form.format(low), x_form.format(left), x_form.format(right)))


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The values as a line of at most `width` blocks, the lowest for the least; each is the mean of its part of them."""
    n = min(width, len(values))
    parts = [values[len(values) * i // n : len(values) * (i + 1) // n] for i in range(n)]
    means = [math.fsum(part) / len(part) for part in parts]
    low, spread = min(means, default=0.0), max(means, default=0.0) - min(means, default=0.0)
    return "".join(BLOCKS[round((mean - low) / spread * (len(BLOCKS) - 1)) if spread > 0 else 0] for mean in means)


def _cells(curve: Curve, left: float, right: float, low: float, high: float, width: int, height: int):
    """(column, row) of the marks of a curve, one in each column that it crosses."""
    for column in range(width if right > left else 1):
        x = left + (right - left) * column / (width - 1)
        y = value(curve, x, slack=(right - left) / (width - 1) / 2)
        if y is not None:
            yield column, round((high - y) / (high - low) * (height - 1)) if high > low else height // 2


def value(curve: Curve, x: float, slack: float = 0.0) -> float | None:
    """A curve, sorted by x, at x: linear between its points; None outside of them by more than `slack`."""
    if not curve or not curve[0][0] - slack <= x <= curve[-1][0] + slack:
        return None
    after = next((i for i, point in enumerate(curve) if point[0] >= x), len(curve) - 1)
    (x1, y1), (x2, y2) = curve[max(0, after - 1)], curve[after]
    if x2 <= x1 or x >= x2 or math.isclose(x, x2):
        return y2
    return y1 + (y2 - y1) * max(0.0, x - x1) / (x2 - x1)


def _framed(field: list[list[str]], high: str, low: str, left: str, right: str) -> list[str]:
    room = max(len(high), len(low))
    labels = [high, *[""] * (len(field) - 2), low]
    body = [f"{label:>{room}} |{''.join(row)}".rstrip() for label, row in zip(labels, field, strict=True)]
    axis = " " * room + " +" + "-" * len(field[0])
    below = " " * (room + 2) + left + right.rjust(len(field[0]) - len(left))
    return [*body, axis, below]
