"""The area under the curve of precision over recall."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def average_precision(scores: NDArray[np.floating[Any]], positive: NDArray[np.bool_]) -> float:
    """Σ_k (R_k − R_{k−1}) P_k over the thresholds, from the largest score down; rows of one score together.

    Args:
        scores: (r,).
        positive: (r,), whether a row is.

    Returns:
        0 to 1; NaN where no row is positive.
    """
    total = int(positive.sum())
    if not total:
        return math.nan
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of each score
    hits = np.cumsum(positive[order])[last]
    seen = np.flatnonzero(last) + 1
    return float((np.diff(hits, prepend=0) * (hits / seen)).sum() / total)
