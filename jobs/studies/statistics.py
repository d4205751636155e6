"""Numbers over seeds, with SciPy, and where a curve first comes to a value."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Mean ± standard deviation over the seeds; "–" where a run is missing."""
    if not len(values) or np.isnan(values).any():
        return "–"
    mean = format(np.mean(values), form)
    return f"{mean} ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else mean


def paired(first: Sequence[float], second: Sequence[float], form: str = "+.2f") -> str:
    """Mean of first − second, seed by seed, with its 95 % interval (Student's t)."""
    found = interval(first, second)
    if found is None:
        return "–"
    mean, low, high = found
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float] | None:
    """The numbers of `paired`: mean, lower and upper end; None where runs are missing."""
    from scipy import stats

    differences = np.subtract(first, second)
    if len(differences) < 2 or np.isnan(differences).any():
        return None
    mean = float(differences.mean())
    half = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    return mean, mean - half, mean + half


def crossing(losses: Sequence[float], spent: Sequence[float], target: float) -> float:
    """What was spent when the loss first was at a target, linear between records; inf: never, nan: no run."""
    at = next((i for i, loss in enumerate(losses) if loss <= target), None)
    if at is None:
        return math.inf if losses else math.nan
    if at == 0:
        return spent[0]
    part = (losses[at - 1] - target) / (losses[at - 1] - losses[at])
    return spent[at - 1] + part * (spent[at] - spent[at - 1])


def power(x: Sequence[float], y: Sequence[float]) -> str:
    """b of y ∝ x^b, by least squares of the logarithms, with its 95 % interval (Student's t)."""
    from scipy import stats

    line = stats.linregress(np.log(x), np.log(y))
    half = stats.t.ppf(0.975, len(x) - 2) * line.stderr
    return f"{line.slope:+.2f} [{line.slope - half:+.2f}, {line.slope + half:+.2f}]"
