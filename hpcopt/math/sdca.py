"""Stochastic dual coordinate ascent on rows of a linear model, compiled; and the conjugate losses.

Shalev-Shwartz & Zhang, "Stochastic dual coordinate ascent methods for regularized loss minimization", JMLR
14, 2013; Yu, Huang & Lin, "Dual coordinate descent methods for logistic regression and maximum entropy
models", Mach. Learn. 85, 2011.

symbol    name      shape    meaning
x_i                 (d,)     the rows
y_i       y         (r,)     targets
α_i       alpha     (r,)     dual variables; for y = ±1, y α is ≥ 0 (squared hinge) or in [0, 1] (logistic)
v         v         (d,)     w + c Σ x_i Δα_i, Δα what α has gained
c         scale              what a dual variable moves v by
‖x_i‖²    squares   (r,)

A step maximises −l*(−α_i) − α_i x_i·v − c ‖x_i‖² (α_i − α_i°)²/2 over α_i, α_i° being what it was:

    least squares    l*(−α) = α²/2 − α y
    squared hinge    l*(−α) = a²/4 − a,                        a = y α ≥ 0
    logistic         l*(−α) = a log a + (1 − a) log(1 − a),    a = y α in [0, 1]

For logistic loss a = 1/(1 + exp(−u)), and u + q a = q a° − y x_i·v is solved by Newton's method, with
q = c ‖x_i‖²: its left side rises with a slope of at least 1, and where u is enclosed is known.
"""

from __future__ import annotations

import math

import torch
from numba import njit
from torch import Tensor

from hpcopt.math.compiled_rows import SQUARED, SQUARED_HINGE, Array, Rows, add, dot, kind_of
from hpcopt.math.losses import MarginLoss

NEWTON_STEPS, CLOSE = 50, 1e-14


def ascend(
    rows: Rows,
    loss: MarginLoss,
    y: Array,
    squares: Array,
    alpha: Array,
    v: Array,
    order: Array,
    scale: float,
) -> None:
    """One step for each row in ``order``, in place: α and v.

    Args:
        rows: x_i.
        loss: l.
        y, squares, alpha, v, scale: see above.
        order: rows, (steps,) int64.
    """
    _steps(*rows.parts(), kind_of(loss), y, squares, alpha, v, order, scale)


def conjugate(loss: MarginLoss, alpha: Tensor, y: Tensor) -> Tensor:
    """l*(−α), (r,), where α is admissible."""
    kind = kind_of(loss)
    if kind == SQUARED:
        return alpha * (alpha / 2 - y)
    a = y * alpha
    if kind == SQUARED_HINGE:
        return a * (a / 4 - 1)
    return torch.xlogy(a, a) + torch.xlogy(1 - a, 1 - a)


@njit(cache=True)
def _best(kind: int, before: float, y: float, z: float, q: float) -> float:
    """α_i after a step, from what it was, the margin x_i·v and c ‖x_i‖²."""
    if kind == SQUARED:
        return before + (y - z - before) / (1.0 + q)
    a = y * before
    if kind == SQUARED_HINGE:
        return y * max(0.0, a + (1.0 - y * z - a / 2.0) / (q + 0.5))
    target = q * a - y * z
    low, high = target - q, target
    u = min(max(0.0, low), high)
    for _ in range(NEWTON_STEPS):
        e = math.exp(-abs(u))
        p = (1.0 if u >= 0 else e) / (1.0 + e)
        value = u + q * p - target
        if value > 0:
            high = u
        else:
            low = u
        step = value / (1.0 + q * e / (1.0 + e) ** 2)
        if abs(step) <= CLOSE * (1.0 + abs(u)):
            break
        u -= step
        if not low <= u <= high:
            u = (low + high) / 2.0
    e = math.exp(-abs(u))
    return y * (1.0 if u >= 0 else e) / (1.0 + e)


@njit(cache=True)
def _steps(
    data: Array,
    indices: Array | None,
    indptr: Array | None,
    kind: int,
    y: Array,
    squares: Array,
    alpha: Array,
    v: Array,
    order: Array,
    scale: float,
) -> None:
    for i in order:
        z = dot(data, indices, indptr, i, v)
        after = _best(kind, alpha[i], y[i], z, scale * squares[i])
        change = scale * (after - alpha[i])
        alpha[i] = after
        if change != 0.0:
            add(data, indices, indptr, i, change, v)
