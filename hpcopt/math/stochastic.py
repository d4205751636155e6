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

from dataclasses import dataclass

from numba import njit

from hpcopt.math.compiled_rows import Array, Rows, add, dot, kind_of, slope
from hpcopt.math.losses import MarginLoss

SMALL = 1e-30
"""where σ is as small, v is written out"""


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
    weights = φ.factor, φ.regularisation
    _steps(*rows.parts(), φ.z, φ.y, φ.reference, φ.linear, *weights, kind_of(φ.loss), v, order, rate, decay)


def steepest(loss: MarginLoss) -> float:
    """The largest l''."""
    return (0.25, 2.0, 1.0)[kind_of(loss)]


@njit(cache=True)
def _steps(
    data: Array,
    indices: Array | None,
    indptr: Array | None,
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
        margin = z[i] + sigma * dot(data, indices, indptr, i, v) + tau * dot(data, indices, indptr, i, C)
        change = factor * (slope(kind, margin, y[i]) - reference[i])
        eta = rate / (1.0 + rate * decay * t)
        sigma *= 1.0 - eta * strength
        tau = (1.0 - eta * strength) * tau - eta
        if abs(sigma) < SMALL:
            for j in range(len(v)):
                v[j] = sigma * v[j] + tau * C[j]
            sigma, tau = 1.0, 0.0
        add(data, indices, indptr, i, -eta * change / sigma, v)
    for j in range(len(v)):
        v[j] = sigma * v[j] + tau * C[j]
