"""What methods for linear models ask of a problem."""

from __future__ import annotations

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
