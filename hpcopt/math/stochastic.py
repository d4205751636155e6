"""Passes of stochastic gradient steps through the rows of a linear model, compiled; sparse rows stay sparse.

What a pass minimises is φ(v) = F Σ_i [l(z_i + x_i·v) − c_i x_i·v] / r + C·v + λ/2 ‖v‖², one row i per step:

    v ← v − η_t [F (l'(z_i + x_i·v) − c_i) x_i + C + λ v],   η_t = η/(1 + η δ t)

c_i = l' at a reference point and C the gradient there (but for λ times it) make it SVRG; c = 0, SGD.

Between the rows that have an entry in a column, v moves there as v ← (1 − η_t λ) v − η_t C, the same affine
map for all columns. So v = σ u + τ C, two numbers being updated in each step and u where the row has entries:
as Bottou's SGD does for C = 0.

Johnson & Zhang, NeurIPS 2013 (SVRG); Bottou, "Stochastic Gradient Descent Tricks", 2012.
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
SMALL = 1e-30
"""where σ is as small, v is written out"""


@dataclass(frozen=True)
class Rows:
    """The rows of a worker: dense (r, d), or their entries in CSR format.

    Attributes:
        data: (r, d) or (entries,).
        indices, indptr: of CSR; None if dense.
    """

    data: Array
    indices: Array | None = None
    indptr: Array | None = None

    def largest(self) -> float:
        """max_i ‖x_i‖²."""
        if self.indices is None or self.indptr is None:
            squares = np.einsum("ij,ij->i", self.data, self.data)
        else:
            ends = np.concatenate([[0.0], np.cumsum(np.square(self.data, dtype=np.float64))])[self.indptr]
            squares = np.diff(ends)
        return float(squares.max(initial=0.0))


@dataclass(frozen=True)
class Objective:
    """φ.

    Attributes:
        loss: l.
        z, y, reference: z_i, targets and c_i of each row, (r,).
        linear: C, of v's length.
        factor: F.
        regularisation: λ.
    """

    loss: MarginLoss
    z: Array
    y: Array
    reference: Array
    linear: Array
    factor: float
    regularisation: float


def sweep(rows: Rows, objective: Objective, v: Array, order: Array, rate: float, decay: float) -> None:
    """One step for each row in ``order``, in place; v may be longer than rows are (they are 0 there).

    Args:
        rows: x_i.
        objective: φ.
        v: where it begins, and ends.
        order: rows, (steps,) int64.
        rate, decay: η and δ.
    """
    φ = objective
    common = (φ.z, φ.y, φ.reference, φ.linear, φ.factor, φ.regularisation, _kind(φ.loss))
    if rows.indices is None or rows.indptr is None:
        _dense(rows.data, *common, v, order, rate, decay)
    else:
        _sparse(rows.data, rows.indices, rows.indptr, *common, v, order, rate, decay)


def steepest(loss: MarginLoss) -> float:
    """The largest l''."""
    return (0.25, 2.0, 1.0)[_kind(loss)]


def _kind(loss: MarginLoss) -> int:
    if isinstance(loss, LogisticLoss):
        return LOGISTIC
    return SQUARED_HINGE if isinstance(loss, SquaredHingeLoss) else SQUARED


@njit(cache=True)
def _slope(kind: int, z: float, y: float) -> float:
    """l'(z, y)."""
    if kind == LOGISTIC:
        return -y / (1.0 + math.exp(min(y * z, 700.0)))
    if kind == SQUARED_HINGE:
        return -2.0 * y * max(0.0, 1.0 - y * z)
    return z - y


@njit(cache=True)
def _dense(
    X: Array,
    z: Array,
    y: Array,
    reference: Array,
    C: Array,
    factor: float,
    strength: float,
    kind: int,
    v: Array,
    order: Array,
    rate: float,
    decay: float,
) -> None:
    sigma, tau, eta = 1.0, 0.0, rate
    for t in range(len(order)):
        i = order[t]
        margin = z[i]
        for j in range(X.shape[1]):
            margin += X[i, j] * (sigma * v[j] + tau * C[j])
        change = factor * (_slope(kind, margin, y[i]) - reference[i])
        eta = rate / (1.0 + rate * decay * t)
        sigma *= 1.0 - eta * strength
        tau = (1.0 - eta * strength) * tau - eta
        if abs(sigma) < SMALL:
            for j in range(len(v)):
                v[j] = sigma * v[j] + tau * C[j]
            sigma, tau = 1.0, 0.0
        for j in range(X.shape[1]):
            v[j] -= eta * change / sigma * X[i, j]
    for j in range(len(v)):
        v[j] = sigma * v[j] + tau * C[j]


@njit(cache=True)
def _sparse(
    data: Array,
    indices: Array,
    indptr: Array,
    z: Array,
    y: Array,
    reference: Array,
    C: Array,
    factor: float,
    strength: float,
    kind: int,
    v: Array,
    order: Array,
    rate: float,
    decay: float,
) -> None:
    sigma, tau, eta = 1.0, 0.0, rate
    for t in range(len(order)):
        i = order[t]
        margin = z[i]
        for entry in range(indptr[i], indptr[i + 1]):
            j = indices[entry]
            margin += data[entry] * (sigma * v[j] + tau * C[j])
        change = factor * (_slope(kind, margin, y[i]) - reference[i])
        eta = rate / (1.0 + rate * decay * t)
        sigma *= 1.0 - eta * strength
        tau = (1.0 - eta * strength) * tau - eta
        if abs(sigma) < SMALL:
            for j in range(len(v)):
                v[j] = sigma * v[j] + tau * C[j]
            sigma, tau = 1.0, 0.0
        for entry in range(indptr[i], indptr[i + 1]):
            v[indices[entry]] -= eta * change / sigma * data[entry]
    for j in range(len(v)):
        v[j] = sigma * v[j] + tau * C[j]
