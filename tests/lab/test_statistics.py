"""Intervals against tabulated quantiles, and pairing."""

import math

import pytest

from jaxeff.lab.statistics import mean_interval, paired_interval, quantile


@pytest.mark.parametrize(("degrees", "value"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (30, 2.0423)])
def test_quantiles_are_those_of_the_tables(degrees, value):
    assert quantile(0.975, degrees) == pytest.approx(value, abs=1e-4)


def test_interval_of_three_values_by_hand():
    interval = mean_interval([1.0, 2.0, 4.0])
    s = math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2)
    assert interval.mean == pytest.approx(7 / 3)
    assert interval.half == pytest.approx(4.302653 * s / math.sqrt(3), rel=1e-6)
    assert interval.low == pytest.approx(interval.mean - interval.half)
    assert not interval.excludes_zero


def test_one_value_has_a_mean_and_no_interval():
    interval = mean_interval([1.5])
    assert (interval.mean, interval.low, interval.high, interval.half) == (1.5, None, None, None)
    assert not interval.excludes_zero


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_nothing_is_averaged_that_has_no_mean(values):
    with pytest.raises(ValueError, match="interval needs"):
        mean_interval(values)


def test_pairing_takes_the_seeds_effect_out():
    ours, base = {0: 2.1, 1: 3.2, 2: 4.15}, {0: 2.0, 1: 3.1, 2: 4.0}
    paired = paired_interval(ours, base)
    assert paired.mean == pytest.approx(0.35 / 3)
    assert paired.excludes_zero
    assert paired.half < 0.1 < mean_interval(ours.values()).half


def test_pairing_uses_shared_seeds_only():
    assert paired_interval({0: 1.0, 5: 9.0}, {0: 0.5, 7: 1.0}).n == 1
    assert paired_interval({0: 1.0}, {1: 1.0}) is None


def test_coverage_of_the_interval_over_three_seeds():
    import numpy as np

    rng = np.random.default_rng(0)
    hits = sum(i.low <= 0 <= i.high for i in (mean_interval(rng.normal(size=3)) for _ in range(2000)))
    assert 0.935 < hits / 2000 < 0.965
