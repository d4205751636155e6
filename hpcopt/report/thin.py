"""Curves with fewer points, where the eye cannot tell."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

COLUMNS = 1500
"""pixel columns that a figure has at most, on paper too"""


def thin(x: ArrayLike, y: ArrayLike, columns: int = COLUMNS) -> NDArray[np.intp]:
    """Which points of a curve to draw: in every pixel column the first, the last, the lowest and the highest.

    Lines between these cover the same pixels as those between all of them (M4: Jugel, Jerzak, Hackenbroich
    and Markl, VLDB 2014). What is not finite, a gap in the curve, stays a gap where it fills a column.

    Args:
        x: (m,), never falling, as it is drawn: its logarithm if the axis is logarithmic.
        y: (m,), on an axis of any monotone scale.
        columns: how many pixel columns there are.

    Returns:
        The points' indices, at most 4 × columns + 4 of them, ascending; all if there are not more.
    """
    across, up = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(across) <= 4 * columns:
        return np.arange(len(across))
    column = _columns(across, columns)
    drawn = np.isfinite(up) & np.isfinite(across)
    kept = [_first(column, drawn), _last(column, drawn)]
    kept += [_first(column, drawn & (up == extreme)) for extreme in _extremes(column, up, drawn)]
    empty = np.bincount(column[drawn], minlength=columns + 1)[column] == 0
    found: NDArray[np.intp] = np.unique(np.concatenate([*kept, _first(column, empty)]))
    return found


def _columns(x: NDArray[Any], columns: int) -> NDArray[np.intp]:
    """The pixel column of each x; those that are not finite, in no figure, have one of their own."""
    known = np.isfinite(x)
    low, high = (float(x[known].min()), float(x[known].max())) if known.any() else (0.0, 0.0)
    width = (high - low) or 1.0
    at = np.full(len(x), columns, dtype=np.intp)
    at[known] = np.minimum((x[known] - low) / width * columns, columns - 1)
    return at


def _first(column: NDArray[np.intp], which: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The first of those points in each column."""
    points = np.flatnonzero(which)
    return points[np.unique(column[points], return_index=True)[1]]


def _last(column: NDArray[np.intp], which: NDArray[np.bool_]) -> NDArray[np.intp]:
    return len(column) - 1 - _first(column[::-1], which[::-1])


def _extremes(
    column: NDArray[np.intp], y: NDArray[Any], drawn: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The smallest and the largest y of each point's column."""
    low, high = np.full(column.max() + 1, np.inf), np.full(column.max() + 1, -np.inf)
    np.minimum.at(low, column[drawn], y[drawn])
    np.maximum.at(high, column[drawn], y[drawn])
    return low[column], high[column]
