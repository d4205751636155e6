"""What a worker does by itself with its model of f: conjugate gradients, Newton's method, SVRG and SGD.

All give a step v from w, in the coordinates of a `Support`.

Lin, Weng & Keerthi, "Trust region Newton method for large-scale logistic regression", JMLR 9, 2008; Johnson &
Zhang, NeurIPS 2013, with the rate of Kovalev, Horváth & Richtárik, "Don't jump through hoops", ALT 2020.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hpcopt.errors import UserError
from hpcopt.math.krylov import conjugate_gradients
from hpcopt.math.trust_region import ENOUGH, next_radius

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hpcopt.math.compiled_rows import Rows
    from hpcopt.math.losses import MarginLoss
    from hpcopt.math.stochastic import Objective
    from hpcopt.methods.parts.local_models import LocalModel, Support
    from hpcopt.problems.base import Problem

NEWTON_TOLERANCE = 0.1
"""of the conjugate gradients in Newton's method, relative to the gradient, as in LIBLINEAR"""
SVRG_RATE, SGD_RATE = 1 / 6, 1.0
"""learning rates over that of the largest curvature of a row"""
Order = Iterator["NDArray[np.int64]"]


def newton(model: LocalModel, iterations: int) -> Tensor:
    """Newton's method in a trust region, with so many conjugate-gradient iterations in all."""
    v, s, value, gradient = torch.zeros_like(model.g), torch.zeros_like(model.z), 0.0, model.g
    radius, left, first = float(gradient.norm()), iterations, True
    while left > 0:
        step = conjugate_gradients(model.hessian(s), gradient, left, radius, NEWTON_TOLERANCE, stable=True)
        predicted = step.predicted(gradient)
        if step.products == 0 or not predicted > torch.finfo(v.dtype).eps * abs(value):
            break
        left -= step.products
        ahead, margins = v + step.s, s + model.support.times(step.s)
        change = model.value(ahead, margins) - value
        slope = float(torch.dot(gradient, step.s))
        radius, first = next_radius(radius, step, slope, change, predicted, first), False
        if -change > ENOUGH * predicted:
            v, s, value = ahead, margins, value + change
            gradient = model.gradient(v, s)
    return v


def svrg(model: LocalModel, orders: Order, rate: float | None) -> Tensor:
    """A pass through the rows from each reference point, the last pass's end; for a = 1, b = 0."""
    from hpcopt.math.stochastic import sweep

    rows, v = entries(model.support), torch.zeros_like(model.g)
    s, gradient, rows_here = torch.zeros_like(model.z), model.g, len(model.y)
    rate = rate or SVRG_RATE / _curvature(rows, model.loss, rows_here, model.regularisation)
    for order in orders:
        # the part of ∇f̂_p that is no row's, so that a row's change is counted from the reference point
        linear = torch.add(gradient, v, alpha=-model.regularisation)
        reference = model.loss.slope(model.z + s, model.y)
        sweep(rows, _objective(model, reference, linear, rows_here), v.numpy(), order, rate, 0.0)
        s = model.support.times(v)
        gradient = model.gradient(v, s)
    return v


def sgd(model: LocalModel, orders: Order, rate: float | None) -> Tensor:
    """Passes through the rows, f̂_p's linear part going into every step; for a = 1, b = 0."""
    linear = model.g - model.support.transposed_times(model.slope)
    return descend(model, linear, float(len(model.y)), orders, rate)


def descend(model: LocalModel, linear: Tensor, factor: float, orders: Order, rate: float | None) -> Tensor:
    """SGD on factor · mean of the losses at z + X v, plus linear·v + λ/2 ‖v‖², from v = 0.

    The rate falls as 1/(1 + η λ t), as in Bottou's programs.
    """
    from hpcopt.math.stochastic import sweep

    rows, v = entries(model.support), torch.zeros_like(linear)
    rate = rate or SGD_RATE / _curvature(rows, model.loss, factor, model.regularisation)
    objective = _objective(model, torch.zeros_like(model.z), linear, factor)
    sweep(rows, objective, v.numpy(), np.concatenate([*orders]), rate, model.regularisation)
    return v


def check_stochastic(problem: Problem, what: str) -> None:
    """Raises `UserError` where steps along the gradient of a row are not possible; ``what``: the setting."""
    if problem.share.device.type != "cpu":
        raise UserError(f'[method] {what} goes from row to row, on a CPU only: set [run] device = "cpu"')
    try:
        import numba  # noqa: F401
    except ImportError:
        raise UserError(f'[method] {what} needs numba: pip install "hpcopt[run]"') from None


def entries(support: Support) -> Rows:
    """The numbers of a worker's rows."""
    from hpcopt.math.compiled_rows import Rows

    return Rows(*support.matrix.arrays())


def _objective(model: LocalModel, reference: Tensor, linear: Tensor, factor: float) -> Objective:
    """The model's losses, as `sweep` takes them."""
    from hpcopt.math.stochastic import Objective

    z, y = model.z.numpy(), model.y.numpy()
    return Objective(model.loss, z, y, reference.numpy(), linear.numpy(), factor, model.regularisation)


def _curvature(rows: Rows, loss: MarginLoss, factor: float, regularisation: float) -> float:
    """The largest one of a row's part of the objective."""
    from hpcopt.math.stochastic import steepest

    return factor * steepest(loss) * rows.squares().max(initial=0.0) + regularisation
