"""The radius of a trust region.

Lin & Moré, SIAM J. Optim. 9(4), 1999, with the constants of LIBLINEAR 2.3 (Hsia, Chiang & Lin, ACML 2018).
"""

from __future__ import annotations

from hpcopt.math.krylov import Step

ENOUGH, POOR, GOOD = 1e-4, 0.25, 0.75
"""actual over predicted fall: above which a step is made, below which the radius shrinks, and may grow"""
LEAST, HALF, MOST = 0.25, 0.5, 4.0
"""factors of the radius"""


def next_radius(
    radius: float, step: Step, slope: float, change: float, predicted: float, first: bool = False
) -> float:
    """The radius after a step was tried, as in LIBLINEAR.

    Args:
        radius: it had.
        step: what was tried.
        slope: g·s.
        change: f(w + s) − f(w).
        predicted: `Step.predicted`.
        first: of the run, whose radius is a guess.
    """
    length = step.length
    if first:
        radius = min(radius, length)
    curved = change - slope
    reach = MOST * length if curved <= 0 else max(LEAST, -0.5 * slope / curved) * length
    if -change < ENOUGH * predicted:
        return min(reach, HALF * radius)
    if -change < POOR * predicted:
        return max(LEAST * radius, min(reach, HALF * radius))
    if -change < GOOD * predicted:
        return max(LEAST * radius, min(reach, MOST * radius))
    return MOST * radius if step.boundary else max(radius, min(reach, MOST * radius))
