"""The smallest value of a linear problem's objective, with a certificate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hpcopt.comm.local_ports import LocalPorts
from hpcopt.errors import HpcoptError, UserError
from hpcopt.methods.tron import TRON
from hpcopt.problems.base import Share
from hpcopt.problems.linear import Linear

if TYPE_CHECKING:
    from torch import Tensor

    from hpcopt.config import RunConfig
    from hpcopt.problems.linear_problem import LinearProblem

CERTAIN = 1e-12
"""how far above f* the value may be, relative to it"""
ROUNDS = 500


def optimum(config: RunConfig) -> float:
    """f* of a config's problem, too large by at most 1e-12 of it; all workers in this process, float64.

    f is λ-strongly convex, so that f(w) − f* ≤ ‖∇f(w)‖²/(2λ).

    Raises:
        UserError: the problem is not linear, or what it describes cannot be had.
        HpcoptError: rounding does not admit such a certificate.
    """
    recipe = config.problem.recipe()
    if not isinstance(recipe, Linear):
        raise UserError(
            f"[problem] kind = {config.problem.kind!r}: the optimum is computed of linear problems only "
            '(kind = "logistic", "squared_hinge" or "least_squares")'
        )
    workers = config.run.workers
    problem = recipe.bind(Share(range(workers), workers, config.run.seed, torch.float64))
    method = TRON()
    state = method.start(problem, LocalPorts(workers, problem.initial()))
    for state.round in range(ROUNDS):
        done = method.step(state).done
        value, gap = _certified(problem, state.w)
        if gap <= CERTAIN * value:
            return value
        if done:
            break
    raise HpcoptError(
        f"[problem] regularisation = {recipe.table.regularisation:g}: after {state.round + 1} rounds f is "
        f"{value!r}, which is certain to {gap / value:.0e} only; rounding prevents more"
    )


def _certified(problem: LinearProblem, w: Tensor) -> tuple[float, float]:
    """f(w), and by how much it is above f* at most."""
    z, strength = problem.margins(w), problem.regularisation
    g = strength * w
    problem.transposed(problem.loss.slope(z, problem.y), g)
    losses = float(problem.loss.value(z, problem.y).sum())
    return losses + strength / 2 * float(w @ w), float(g @ g) / (2 * strength)
