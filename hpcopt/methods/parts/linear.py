"""What methods for linear models ask of a problem."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcopt.comm.ports import Contribution
from hpcopt.errors import UserError
from hpcopt.problems.base import Problem
from hpcopt.problems.linear_problem import LinearProblem


def linear(problem: Problem, who: str) -> LinearProblem:
    """The problem, which has margins; ``who``: the method, by its name in configs.

    Raises:
        UserError: it is another one.
    """
    if isinstance(problem, LinearProblem):
        return problem
    raise UserError(
        f'[run] method = "{who}" needs a linear problem '
        '(kind = "logistic", "squared_hinge" or "least_squares")'
    )


def linear_in_double(problem: Problem, who: str) -> LinearProblem:
    """The same, for methods that keep margins beside what they are the margins of.

    In single precision both drift apart within few rounds, and f rises by percents: near-dependent directions
    have large coefficients, which multiply the rounding errors of margins.

    Raises:
        UserError: it is another one, or in single precision.
    """
    if problem.share.dtype is not torch.float64:
        raise UserError(
            f'[run] dtype = "float32": {who} keeps margins from round to round and needs "float64"'
        )
    return linear(problem, who)


def add_squares(total: Contribution, problem: LinearProblem, c: Tensor) -> None:
    """Adds (X_p∘X_p)ᵀ c_p of every worker here, c (r,) a number of each of their rows."""
    for i in range(problem.share.n):
        total.add(i, problem.rows_of_worker(i).squared_transposed_times(c[problem.span(i)]))
