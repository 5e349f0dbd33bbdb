"""Which learning rate a sweep chooses, and which one it tries next when that lies at an end."""

from collections.abc import Callable, Mapping

Badness = Callable[[float], float]
DIGITS = 3  # of a rate that a sweep adds, so that it can be typed


def best(found: Mapping[float, float | None], badness: Badness) -> float | None:
    """The rate with the best score, None when training diverged (score None) at all of them.

    Of equal ones, those inside the sweep come before those at its ends, then the smaller: where neighbours are equal, the best
    rate lies between them.
    """
    finite = {lr: value for lr, value in found.items() if value is not None}
    ends = (min(found, default=None), max(found, default=None))
    return min(finite, key=lambda lr: (badness(finite[lr]), lr in ends, lr), default=None)


def beyond(found: Mapping[float, float | None], badness: Badness) -> float | None:
    """The rate to try next: beyond the end at which the best one lies, by the ratio of the two rates there.

    None when the best one lies inside, and for fewer than two rates. Where training diverged at all of
    them, the next is a lower one.
    """
    rates = sorted(found)
    if len(rates) < 2:
        return None
    chosen = best(found, badness)
    if chosen is None or chosen == rates[0]:
        return _further(rates[0], rates[1])
    return _further(rates[-1], rates[-2]) if chosen == rates[-1] else None


def _further(end: float, neighbour: float) -> float | None:
    """The rate as far from the end as the end is from its neighbour; None where one of them is 0, which has no ratio."""
    if min(end, neighbour) <= 0:
        return None
    exact = end * (end / neighbour)
    rounded = float(f"{exact:.{DIGITS}g}")
    return rounded if (rounded - end) * (end - neighbour) > 0 else exact
