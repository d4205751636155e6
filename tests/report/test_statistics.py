"""Medians, speed-ups and their intervals: against SciPy, by hand and by simulation."""

import numpy as np
import pytest
from scipy.stats import quantile_test

from hpcopt.report import statistics
from hpcopt.report.statistics import Estimate, median


@pytest.mark.parametrize("n", [6, 7, 9, 20, 101])
def test_the_interval_is_scipys(n):
    samples = np.random.default_rng(n).lognormal(size=n)
    oracle = quantile_test(samples, q=0, p=0.5).confidence_interval(0.95)
    found = median(samples)
    assert (found.low, found.high) == (oracle.low, oracle.high)
    assert (found.value, found.count, found.interval) == (np.median(samples), n, "95% interval")


@pytest.mark.parametrize("n", [1, 3, 5])
def test_few_samples_have_a_range_and_say_so(n):
    found = median(np.arange(n))
    assert (found.low, found.high, found.interval) == (0, n - 1, f"n = {n}: range")


def test_what_was_not_measured_is_left_out():
    assert median([np.nan, 3.0, 1.0, np.nan, 2.0]) == Estimate(2, 1, 3, 3, False)
    assert median([np.nan]).count == 0
    assert median([1.0, np.inf, np.inf]).value == np.inf


def test_intervals_hold_what_they_promise():
    """Of skewed times with a known median; of the ratio of two such, with unequal numbers of samples."""
    rng = np.random.default_rng(0)
    hits = hits_of_ratio = 0
    for _ in range(2000):
        above, below = median(rng.lognormal(size=8)), median(rng.lognormal(sigma=0.3, size=20) / 3)
        hits += above.low <= 1 <= above.high
        both = statistics.ratio(above, below)
        hits_of_ratio += both.low <= 3 <= both.high
    assert 0.95 - 0.015 < hits / 2000 < 0.999
    assert hits_of_ratio / 2000 > 0.95


def test_strong_scaling_by_hand():
    """T(1) = 8, T(2) = 5, T(4) = 3.5: 8 = 2 + 6/P, so that a quarter of the work is serial."""
    one, two, four = statistics.scaling({4: [3.5], 1: [7.0, 8.0, 10.0], 2: [4.0, 5.0, 6.0]}, "strong")
    assert [point.ranks for point in (one, two, four)] == [1, 2, 4]
    assert (one.speedup.low, one.efficiency.value) == (1, 1)
    assert (two.speedup.value, two.speedup.low, two.speedup.high) == (8 / 5, 7 / 6, 10 / 4)
    assert two.efficiency.value == 4 / 5
    assert two.serial.value == pytest.approx(0.25)
    assert four.serial.value == pytest.approx(0.25)
    assert two.serial.low == pytest.approx((0.4 - 0.5) / 0.5)
    assert two.serial.high == pytest.approx((6 / 7 - 0.5) / 0.5)
    assert np.isnan(one.serial.value)
    assert not two.beyond


def test_weak_scaling_by_hand():
    _, four = statistics.scaling({2: [2.0], 8: [2.5]}, "weak")
    assert (four.efficiency.value, four.speedup.value) == (0.8, 3.2)
    assert np.isnan(four.serial.value)


def test_beyond_ideal_is_marked_where_all_of_the_interval_is():
    points = statistics.scaling({1: [10.0] * 6, 2: [4.0] * 6, 3: [2.9, 3.0, 3.1, 3.2, 3.3, 4.0]}, "strong")
    assert [point.beyond for point in points] == [False, True, False]
    assert points[1].serial.value < 0
