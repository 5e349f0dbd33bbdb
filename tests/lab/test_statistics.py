"""Intervals against tabulated quantiles, and pairing."""

import math

import pytest

from jaxeff.lab.statistics import ALPHA, holm, mean_interval, paired_interval, paired_p, quantile, two_sided


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


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0, 4.0, -4.0, 40.0])
def test_tails_are_those_of_the_closed_forms(t):
    assert two_sided(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(abs(t)), abs=1e-12)
    assert two_sided(t, 2) == pytest.approx(1 - abs(t) / math.sqrt(2 + t * t), abs=1e-12)


def test_p_of_paired_seeds_by_hand():
    # Differences 1, 2, 3: mean 2, s 1, t = 2 sqrt(3) at 2 degrees of freedom, p = 1 - t / sqrt(2 + t^2) = 1 - sqrt(6 / 7).
    ours, base = {0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0, 9: 7.0}
    assert paired_p(ours, base) == pytest.approx(1 - math.sqrt(6 / 7))
    assert paired_p(ours, base) == pytest.approx(0.0741799, abs=1e-7)
    assert paired_p(base, ours) == pytest.approx(paired_p(ours, base))


def test_p_without_spread_and_without_seeds():
    assert paired_p({0: 1.0}, {0: 0.5}) is None and paired_p({0: 1.0}, {1: 1.0}) is None
    assert paired_p({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}) == 1.0
    assert paired_p({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}) == 0.0


def test_one_comparison_is_claimed_as_its_interval_claims_it():
    import numpy as np

    rng = np.random.default_rng(1)
    base = dict.fromkeys(range(3), 0.0)
    claims = []
    for _ in range(500):
        ours = dict(enumerate(rng.normal(1.5, 1.0, size=3).tolist()))
        p = holm({"ours": paired_p(ours, base)})["ours"]
        claims.append((p < ALPHA, paired_interval(ours, base).excludes_zero))
    assert set(claims) == {(True, True), (False, False)}


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ((0.03,), (0.03,)),
        # Sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, of which the last may not fall below 0.06.
        ((0.01, 0.04, 0.03, 0.005), (0.03, 0.06, 0.06, 0.02)),
        ((0.01, 0.02, 0.03, 0.04, 0.05), (0.05, 0.08, 0.09, 0.09, 0.09)),
        ((0.5, 0.9, 0.001), (1.0, 1.0, 0.003)),
        ((0.02, 0.02), (0.04, 0.04)),
        ((), ()),
    ],
)
def test_holm_by_hand(p, corrected):
    found = holm({f"m{i}": value for i, value in enumerate(p)})
    assert list(found) == [f"m{i}" for i in range(len(p))]
    assert list(found.values()) == pytest.approx(list(corrected))


def test_comparisons_that_are_not_made_yet_count():
    assert holm({"a": 0.02, "b": 0.01}, 4) == pytest.approx({"a": 0.06, "b": 0.04})
    with pytest.raises(ValueError, match="n must be at least the number of p-values, 2, found 1"):
        holm({"a": 0.02, "b": 0.01}, 1)
    with pytest.raises(ValueError, match="between 0 and 1, found nan for 'a'"):
        holm({"a": math.nan})


def test_the_family_makes_a_false_claim_no_more_often_than_one_comparison():
    import numpy as np

    rng = np.random.default_rng(0)
    false, plain = 0, 0
    for _ in range(1000):
        base = dict(enumerate(rng.normal(size=3).tolist()))
        p = {str(m): paired_p(dict(enumerate(rng.normal(size=3).tolist())), base) for m in range(6)}
        false += min(holm(p).values()) < ALPHA
        plain += min(p.values()) < ALPHA
    assert false / 1000 < 0.065 < 0.15 < plain / 1000
