"""What measured times say: medians with intervals, speed-up, efficiency, serial fraction.

The rules of Hoefler and Belli (Scientific Benchmarking of Parallel Computing Systems, SC '15): medians,
because times have long tails; an interval beside each (rule 5), without supposing a distribution; ratios of
medians, never a mean of ratios (rule 4).

| name | symbol | what |
|---|---|---|
| time | T(P) | seconds of a round on P ranks |
| base | P₀ | the fewest ranks that were measured: what all else is compared with |
| p | P / P₀ | what would be the speed-up if ranks cost nothing |
| speedup | S | T(P₀) / T(P) with the same work; with work in proportion to the ranks (weak), p times that |
| efficiency | E | S / p |
| serial | e | (1/S - 1/p) / (1 - 1/p): Karp and Flatt (CACM 33(5), 1990) |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A median, or what was computed of medians, and how far it can be trusted.

    Attributes:
        value: NaN where there is nothing.
        low, high: the ends of the interval.
        count: how many samples it is of; of a ratio, those of the side that has fewer.
        confident: whether low and high hold the true median with `CONFIDENCE`; otherwise there are too few
            samples for that, and they are the smallest and the largest.
    """

    value: float
    low: float
    high: float
    count: int
    confident: bool

    @property
    def interval(self) -> str:
        """What low and high are, in words: to be said beside every interval that is shown."""
        return f"{CONFIDENCE:.0%} interval" if self.confident else f"n = {self.count}: range"

    def times(self, factor: float) -> Estimate:
        """The same in another unit; factor > 0."""
        return Estimate(
            self.value * factor, self.low * factor, self.high * factor, self.count, self.confident
        )


@dataclass(frozen=True)
class Point:
    """What a scaling study says about one number of ranks.

    Attributes:
        ranks: P.
        time: of a round [s].
        speedup, efficiency: relative to the fewest ranks.
        serial: the fraction of Karp and Flatt; NaN for the fewest ranks, and where the work grows with P.
        beyond: the speed-up is above the ideal one with all of its interval: more cache, say.
    """

    ranks: int
    time: Estimate
    speedup: Estimate
    efficiency: Estimate
    serial: Estimate
    beyond: bool


def median(samples: ArrayLike) -> Estimate:
    """The median and its nonparametric interval.

    The k-th smallest and the k-th largest of n samples enclose the true median with probability
    1 - 2 Pr[Bin(n, 1/2) < k], whatever the distribution is; k is the largest for which that is at least
    `CONFIDENCE`. There is none for n < 6. Samples that are NaN, which were not measured, are left out.
    """
    from scipy.stats import binom

    known = np.asarray(samples, dtype=np.float64).ravel()
    known = np.sort(known[~np.isnan(known)])
    n = len(known)
    if not n:
        return Estimate(np.nan, np.nan, np.nan, 0, False)
    k = int(binom.ppf((1 - CONFIDENCE) / 2, n, 0.5))
    at = max(k, 1) - 1
    with np.errstate(invalid="ignore"):  # between two infinities
        value = float(np.median(known))
    return Estimate(value, float(known[at]), float(known[n - 1 - at]), n, k > 0)


def quartiles(samples: ArrayLike) -> tuple[float, float, float]:
    """The first quartile, the median and the third, interpolated linearly; NaN left out."""
    known = np.asarray(samples, dtype=np.float64).ravel()
    known = known[~np.isnan(known)]
    if not len(known):
        return np.nan, np.nan, np.nan
    first, middle, third = np.quantile(known, (0.25, 0.5, 0.75)).tolist()
    return first, middle, third


def ratio(above: Estimate, below: Estimate) -> Estimate:
    """The ratio of two medians of independent samples, both positive.

    Its interval divides the ends crosswise: low by high, high by low. That is sure to hold the ratio wherever
    both intervals hold their medians (at least 90 %, of two of 95 %), and does so in more than 95 % of cases
    where the two sets of samples are independent, since both rarely err to opposite sides at once.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value, low, high = (
            float(np.divide(a, b))
            for a, b in ((above.value, below.value), (above.low, below.high), (above.high, below.low))
        )
    return Estimate(value, low, high, min(above.count, below.count), above.confident and below.confident)


def serial_fraction(speedup: Estimate, p: float) -> Estimate:
    """Karp and Flatt's fraction of a speed-up on p times as many ranks; NaN for p ≤ 1.

    It falls as the speed-up grows, so that the ends of the intervals change places; below 0: beyond ideal.
    """
    if p <= 1:
        return Estimate(np.nan, np.nan, np.nan, speedup.count, speedup.confident)
    with np.errstate(divide="ignore"):
        slower = 1 / np.array([speedup.value, speedup.high, speedup.low])
    value, low, high = ((slower - 1 / p) / (1 - 1 / p)).tolist()
    return Estimate(value, low, high, speedup.count, speedup.confident)


def scaling(times: Mapping[int, ArrayLike], mode: Literal["strong", "weak"]) -> list[Point]:
    """What was measured on several numbers of ranks, the fewest first.

    Args:
        times: ranks -> seconds of a round, a sample each.
        mode: strong: the work of a round is the same on all; weak: it is in proportion to the ranks.
    """
    medians = {ranks: median(times[ranks]) for ranks in sorted(times)}
    points: list[Point] = []
    for ranks, time in medians.items():
        base = next(iter(medians))
        p = ranks / base
        faster = ratio(medians[base], time)
        if ranks == base:  # of itself: no chance in it
            faster = Estimate(1.0, 1.0, 1.0, time.count, time.confident)
        speedup = faster if mode == "strong" else faster.times(p)
        serial = serial_fraction(speedup, p if mode == "strong" else 1)
        points.append(Point(ranks, time, speedup, speedup.times(1 / p), serial, speedup.low > p))
    return points


def seconds_of_a_round(seconds: ArrayLike, rounds: ArrayLike) -> NDArray[np.float64]:
    """Blocks of rounds as seconds of one round."""
    return np.asarray(seconds, dtype=np.float64) / np.asarray(rounds, dtype=np.float64)


def by(keys: Iterable[float], samples: ArrayLike) -> dict[int, NDArray[Any]]:
    """Samples, sorted into what their keys are, in the order of these."""
    where = np.asarray(list(keys))
    values = np.asarray(samples)
    return {int(key): values[where == key] for key in np.unique(where)}
