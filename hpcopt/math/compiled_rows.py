"""Rows of a linear model in compiled loops over rows, dense or in CSR format, and its losses there.

Compiled functions take rows as three arrays (`Rows.parts`); the last two are None where rows are dense, and
what is for the other format is not compiled then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hpcopt.math.losses import LogisticLoss, MarginLoss, SquaredHingeLoss

Array = NDArray[Any]
LOGISTIC, SQUARED_HINGE, SQUARED = range(3)


@dataclass(frozen=True)
class Rows:
    """x_i, (d,) each: dense (r, d), or their entries in CSR format.

    Attributes:
        data: (r, d) or (entries,).
        indices, indptr: of CSR; None if dense.
    """

    data: Array
    indices: Array | None = None
    indptr: Array | None = None

    def parts(self) -> tuple[Array, Array | None, Array | None]:
        """For compiled functions."""
        return self.data, self.indices, self.indptr

    def squares(self) -> Array:
        """‖x_i‖² of each row, (r,)."""
        if self.indptr is None:
            return np.einsum("ij,ij->i", self.data, self.data)
        squares = np.empty(len(self.indptr) - 1, self.data.dtype)
        _squares(self.data, self.indptr, squares)
        return squares


def kind_of(loss: MarginLoss) -> int:
    """Which loss, in compiled functions."""
    if isinstance(loss, LogisticLoss):
        return LOGISTIC
    return SQUARED_HINGE if isinstance(loss, SquaredHingeLoss) else SQUARED


@njit(cache=True)
def slope(kind: int, z: float, y: float) -> float:
    """l'(z, y)."""
    if kind == LOGISTIC:
        return -y / (1.0 + math.exp(min(y * z, 700.0)))
    if kind == SQUARED_HINGE:
        return -2.0 * y * max(0.0, 1.0 - y * z)
    return z - y


@njit(cache=True)
def dot(data: Array, indices: Any, indptr: Any, i: int, v: Array) -> float:
    """x_i·v; v may be longer than x_i, which is 0 there."""
    if data.ndim == 2:  # resolved when it is compiled
        return float(np.dot(data[i], v[: data.shape[1]]))
    total = 0.0
    for entry in range(indptr[i], indptr[i + 1]):
        total += data[entry] * v[indices[entry]]
    return total


@njit(cache=True)
def add(data: Array, indices: Any, indptr: Any, i: int, factor: float, v: Array) -> None:
    """v += factor x_i."""
    if data.ndim == 2:  # resolved when it is compiled
        for j in range(data.shape[1]):
            v[j] += factor * data[i, j]
    else:
        for entry in range(indptr[i], indptr[i + 1]):
            v[indices[entry]] += factor * data[entry]


@njit(cache=True)
def _squares(data: Array, indptr: Array, squares: Array) -> None:
    for i in range(len(squares)):
        total = 0.0
        for entry in range(indptr[i], indptr[i + 1]):
            total += data[entry] * data[entry]
        squares[i] = total
