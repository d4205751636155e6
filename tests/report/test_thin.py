"""Thinned curves cover the same pixels."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcopt.report.thin import thin


def pixels(x, y, columns, low, high, rows=200):
    """Which rows of pixels the lines between points cross in each column; non-finite points break them."""
    at = np.minimum((x - low) / (high - low) * columns, columns - 1e-9)
    covered = set()
    for (a, b), (c, d) in zip(zip(at, y, strict=True), zip(at[1:], y[1:], strict=True), strict=False):
        if not np.isfinite([b, d]).all():
            continue
        for column in range(int(a), int(c) + 1):
            ends = np.clip([column, column + 1], a, c)
            heights = np.interp(ends, [a, c], [b, d]) if c > a else np.array([b, d])
            covered |= {
                (column, row) for row in range(int(heights.min() * rows), int(heights.max() * rows) + 1)
            }
    return covered


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(5, 40))
def test_the_same_pixels_are_covered(seed, columns):
    random = np.random.default_rng(seed)
    x = np.sort(random.random(40 * columns)) ** 2
    y = random.random(len(x))
    kept = thin(x, y, columns)
    assert len(kept) <= 4 * columns < len(x)
    every = pixels(x, y, columns, x[0], x[-1])
    assert pixels(x[kept], y[kept], columns, x[0], x[-1]) == every


def test_short_curves_are_kept_whole():
    assert thin(range(40), range(40), 10).tolist() == list(range(40))


def test_gaps_stay_and_spikes_too():
    y = np.linspace(0, 1, 10_000)
    y[3000:5000] = np.nan
    y[7123], y[8123] = 50, -50
    kept = thin(np.arange(10_000), y, 100)
    gap = kept[(kept >= 3000) & (kept < 5000)]
    assert len(gap) == 20
    assert np.isnan(y[gap]).all()
    assert {0, 7123, 8123, 9999} <= set(kept.tolist())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nothing_finite_at_all(bad):
    kept = thin(np.arange(1000), np.full(1000, bad), 10)
    assert kept.tolist() == list(range(0, 1000, 100))
    assert len(thin(np.full(1000, bad), np.arange(1000), 10)) == 1
    assert len(thin(np.zeros(1000), np.arange(1000.0), 10)) == 2


def test_a_million_points_are_quick():
    x = np.arange(1_000_000)
    since = time.process_time()
    kept = thin(x, np.sin(x * 1e-3), 1500)
    assert time.process_time() - since < 2
    assert len(kept) <= 6000
