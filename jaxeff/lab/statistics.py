"""Intervals over seeds, paired where two models saw the same seeds.

A seed fixes both the initial values and the order of the data, and the order is the same for every model at one seed. So the
difference of two models at one seed is free of what the seed alone does to both, and the interval of the mean difference is
narrower than the two models' own intervals suggest. With n seeds the interval is `mean +- t(n - 1) * s / sqrt(n)`: s is the
sample standard deviation, t the two-sided quantile of Student's distribution (4.30 for three seeds at 95 %). It takes the values
to be normally distributed, which three seeds cannot show; it covers seeds only, not the choice of the corpus.

One interval in twenty misses. So that comparing many models with one baseline claims no more than comparing one, claims rest on
p-values that are corrected for their number, see `holm`; the intervals are not corrected.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

ALPHA = 0.05
METHOD = "Student's t over seeds, two-sided, n - 1 degrees of freedom"


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over n values with the ends of its interval; the ends are None when n < 2, where no spread is known."""

    mean: float
    low: float | None
    high: float | None
    n: int
    level: float = 0.95

    @property
    def half(self) -> float | None:
        """Half the interval's length: what stands after the plus-minus sign."""
        return None if self.high is None else self.high - self.mean

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A mean difference to the baseline: its own interval, the p-value of its paired t test, and the one corrected by `holm`."""

    interval: Interval
    p: float
    p_holm: float

    @property
    def differs(self) -> bool:
        """Whether the difference is claimed: the corrected p-value lies below 0.05."""
        return self.p_holm < ALPHA


def mean_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """The mean of `values` and its Student-t interval. Raises ValueError for no values, non-finite values or a bad level."""
    values = [float(v) for v in values]
    if not values:
        raise ValueError("an interval needs at least one value")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"an interval needs finite values, found {values}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, found {level}")
    n = len(values)
    if n == 1:
        return Interval(values[0], None, None, 1, level)
    mean, error = _mean_and_error(values)
    half = quantile((1 + level) / 2, n - 1) * error
    return Interval(mean, mean - half, mean + half, n, level)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    n = len(values)
    mean = math.fsum(values) / n
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)


def paired_interval(values: Mapping[int, float], baseline: Mapping[int, float], level: float = 0.95) -> Interval | None:
    """Interval of the mean of `values[seed] - baseline[seed]` over the seeds that both have; None when they share none."""
    gaps = _gaps(values, baseline)
    return mean_interval(gaps, level) if gaps else None


def paired_p(values: Mapping[int, float], baseline: Mapping[int, float]) -> float | None:
    """Two-sided p-value of the paired t test over the seeds that both have; None for fewer than two, which show no spread.

    With differences of mean d and sample standard deviation s at n seeds, it is the probability that Student's t with n - 1 degrees
    of freedom lies further from 0 than `d / (s / sqrt(n))`. It is below 0.05 where the 95 % interval leaves out zero. Equal
    differences have p 0, or 1 where they are all zero.
    """
    gaps = _gaps(values, baseline)
    if len(gaps) < 2:
        return None
    mean, error = _mean_and_error(gaps)
    if error == 0:
        return 0.0 if mean else 1.0
    return two_sided(mean / error, len(gaps) - 1)


def _gaps(values: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    return [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]


def holm(p_values: Mapping[str, float], n: int | None = None) -> dict[str, float]:
    """The p-values corrected for a family of n comparisons by Holm's step-down method, under their names.

    With the p-values in rising order, the k-th becomes the largest of `min(1, (n - j + 1) * p_j)` over j = 1..k (Holm 1979, "A
    simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 65-70). Claiming those below
    0.05 makes a false claim among all n with a probability of at most 0.05, however the comparisons depend on each other.

    n: as many as there are p-values by default; more where some are not known yet, which counts them as 1. Raises ValueError for
    p-values outside 0..1 and for an n below their number.
    """
    n = len(p_values) if n is None else n
    if n < len(p_values):
        raise ValueError(f"n must be at least the number of p-values, {len(p_values)}, found {n}")
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(f"p-values must lie between 0 and 1, found {p} for {name!r}")
    corrected, least = {}, 0.0
    for k, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        least = max(least, min(1.0, (n - k) * p_values[name]))
        corrected[name] = least
    return {name: corrected[name] for name in p_values}


# jax depends on scipy; its import is slow enough to stay out of the module's head.
def quantile(p: float, degrees: int) -> float:
    """The p-quantile of Student's distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, p))


def two_sided(t: float, degrees: int) -> float:
    """The probability that Student's distribution gives a value further from 0 than t."""
    from scipy.special import stdtr

    return float(2 * stdtr(degrees, -abs(t)))
