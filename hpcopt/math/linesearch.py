"""Line search along a direction in which a convex function falls.

Armijo's and Wolfe's conditions: Nocedal & Wright, "Numerical Optimization", chapter 3; what stands for them
where a fall drowns in rounding: Hager & Zhang, SIAM J. Optim. 16(1), 2005.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Along = Callable[[float], tuple[float, float]]
GROW, MARGIN, SHRINK = 4.0, 0.1, 0.5
"""a step grows to at most so many times itself; next to an end of the bracket no closer than this part of it;
two trials that leave more of the bracket are followed by a bisection"""


@dataclass(frozen=True)
class Found:
    """Where the search ended.

    Attributes:
        t: the step, 0 where no trial was lower than the start, and nan where that is no number.
        value, slope: φ(t) and φ'(t).
        trials: how often φ was asked for.
    """

    t: float
    value: float
    slope: float
    trials: int


@dataclass(frozen=True)
class _Point:
    t: float
    value: float
    slope: float


def search(
    along: Along,
    value: float,
    slope: float,
    first: float = 1.0,
    armijo: float = 1e-4,
    wolfe: float = 0.9,
    most: int = 30,
    slack: float = 0.0,
    patient: bool = False,
) -> Found:
    """A step t > 0 with φ(t) ≤ φ(0) + armijo t φ'(0) and |φ'(t)| ≤ wolfe |φ'(0)|, φ convex.

    Asks for φ at ``first``, then further out until the minimum is enclosed, then within: where a cubic
    through both ends has its minimum, or in the middle. All decisions follow from what ``along`` returns, so
    that ranks whose numbers agree do the same; what is not finite counts as too high.

    Args:
        along: t -> φ(t), φ'(t); may be collective.
        value, slope: φ(0) and φ'(0); where the slope is not negative nothing is tried.
        first: the first trial.
        armijo, wolfe: of the conditions.
        most: trials; after that the lowest of them is taken.
        patient: more of them, as long as all were too far although by its slope φ has to fall by more than
            rounding at the next: of lines whose trials cost little.
        slack: rise of φ that is taken for rounding, where slopes alone then tell that φ falls; with 0 the
            value found is never above the one given.
    """
    if not (math.isfinite(value) and math.isfinite(slope)):
        return Found(math.nan, value, slope, 0)
    start = _Point(0.0, value, slope)
    low, high, best = start, None, start
    width, shrunk = math.inf, True
    t, trial, rounding = first, 0, max(slack, math.ulp(value))
    while slope < 0 and (trial < most or (patient and best is low is start and -slope * t > rounding)):
        trial += 1
        point = _Point(t, *along(t))
        finite = math.isfinite(point.value) and math.isfinite(point.slope)
        falls = finite and _falls(point, start, armijo, slack)
        if falls and abs(point.slope) <= -wolfe * slope:
            return Found(t, point.value, point.slope, trial)
        if finite and point.value < best.value:
            best = point
        if falls and point.slope < 0:
            low = point
        else:
            high = point
        if high is None:
            t = _outwards(low, start)
            continue
        if high.t - low.t <= 4 * math.ulp(high.t):
            break
        shrunk, width = high.t - low.t <= SHRINK * width, high.t - low.t
        t = _between(low, high) if shrunk else (low.t + high.t) / 2
    return Found(best.t, best.value, best.slope, trial)


def _falls(point: _Point, start: _Point, armijo: float, slack: float) -> bool:
    """Armijo's condition; or, where φ changes within the slack, what that is for a parabola, by slopes."""
    if point.value <= start.value + armijo * point.t * start.slope:
        return True
    flat = 0 < slack >= abs(point.value - start.value)
    return flat and point.slope <= (2 * armijo - 1) * start.slope


def _outwards(point: _Point, start: _Point) -> float:
    """Two to four times as far: where the slope would be 0 if it went on rising as from the start."""
    rise = point.slope - start.slope
    t = -start.slope * point.t / rise if rise > 0 else math.inf
    return min(max(t, 2 * point.t), GROW * point.t)


def _between(low: _Point, high: _Point) -> float:
    """The minimum of the cubic through both ends, not too near to either."""
    width = high.t - low.t
    middle = low.t + width / 2
    if not (math.isfinite(high.value) and math.isfinite(high.slope)):
        return middle
    a = low.slope + high.slope - 3 * (high.value - low.value) / width
    root = a * a - low.slope * high.slope
    if not 0 <= root < math.inf:
        return middle
    b = math.sqrt(root)
    below = high.slope - low.slope + 2 * b
    if below <= 0:
        return middle
    t = high.t - width * (high.slope + b - a) / below
    return min(max(t, low.t + MARGIN * width), high.t - MARGIN * width)
