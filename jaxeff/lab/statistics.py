"""Intervals over seeds, paired where two models saw the same seeds.

A seed fixes both the initial values and the order of the data, and the order is the same for every model at one seed. So the
difference of two models at one seed is free of what the seed alone does to both, and the interval of the mean difference is
narrower than the two models' own intervals suggest. With n seeds the interval is `mean +- t(n - 1) * s / sqrt(n)`: s is the
sample standard deviation, t the two-sided quantile of Student's distribution (4.30 for three seeds at 95 %). It takes the values
to be normally distributed, which three seeds cannot show; it covers seeds only, not the choice of the corpus.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping

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
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None, 1, level)
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    half = quantile((1 + level) / 2, n - 1) * math.sqrt(variance / n)
    return Interval(mean, mean - half, mean + half, n, level)


def paired_interval(values: Mapping[int, float], baseline: Mapping[int, float], level: float = 0.95) -> Interval | None:
    """Interval of the mean of `values[seed] - baseline[seed]` over the seeds that both have; None when they share none."""
    seeds = sorted(values.keys() & baseline.keys())
    return mean_interval([values[seed] - baseline[seed] for seed in seeds], level) if seeds else None


def quantile(p: float, degrees: int) -> float:
    """The p-quantile of Student's distribution."""
    from scipy.special import (
        stdtrit,
    )  # jax depends on scipy; the import is slow enough to stay out of the module's head

    return float(stdtrit(degrees, p))
