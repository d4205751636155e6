"""The objective along a line, for methods that search on any problem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from hpcopt.methods.parts.margin_line import MarginLine
from hpcopt.problems.linear_problem import LinearProblem

if TYPE_CHECKING:
    from hpcopt.comm.ports import Reducer
    from hpcopt.math.linesearch import Along
    from hpcopt.problems.base import Problem


class Line(Protocol):
    """f, or a multiple of it, on lines through x. Every call is collective.

    Attributes:
        free: whether trials cost no pass.
    """

    free: bool

    def begin(self, x: Tensor, d: Tensor) -> tuple[float, Along]:
        """f(x), and t -> f(x + t d) and its derivative in t; of the line that is asked about from now on."""

    def gradient(self, x: Tensor, t: float | None = None) -> Tensor:
        """∇f(x), (d,); ``t``: x is that far along the line. Until the next call of anything."""


class LinearLine:
    """`Line` of a linear problem: its trials need margins alone, a gradient one pass."""

    free = True

    def __init__(self, problem: LinearProblem, reduce: Reducer) -> None:
        self._problem = problem
        self._margins = MarginLine(problem, reduce)
        self._sum = reduce.contribution(problem.dim)
        self._z = self._e = problem.y

    def begin(self, x: Tensor, d: Tensor) -> tuple[float, Along]:
        """See `Line`."""
        self._z, self._e = self._problem.margins(x), self._problem.margins(d)
        return self._margins.value(x, self._z), self._margins.along(x, d, self._z, self._e)

    def gradient(self, x: Tensor, t: float | None = None) -> Tensor:
        """See `Line`."""
        problem = self._problem
        z = problem.margins(x) if t is None else torch.add(self._z, self._e, alpha=t)
        total = self._sum.add_transposed(problem, problem.of_rows(problem.loss.slope, z)).sum()
        return total.add_(x, alpha=problem.regularisation)


class AnyLine:
    """`Line` of any problem, f being divided by its scale: each trial is a gradient, and so a pass."""

    free = False

    def __init__(self, problem: Problem, reduce: Reducer) -> None:
        self._problem, self._reduce = problem, reduce
        self._last: tuple[float, Tensor] | None = None

    def begin(self, x: Tensor, d: Tensor) -> tuple[float, Along]:
        """See `Line`."""
        start, direction = x.clone(), d

        def at(t: float) -> tuple[float, float]:
            there = torch.add(start, direction, alpha=t)
            g = self._reduce.gradient(self._problem, there)
            self._last = t, g
            return self._value(there), float(torch.dot(g, direction))

        self._last = None
        return self._value(start), at

    def gradient(self, x: Tensor, t: float | None = None) -> Tensor:
        """See `Line`; the last trial's has been computed."""
        if self._last is not None and self._last[0] == t:
            return self._last[1]
        return self._reduce.gradient(self._problem, x)

    def _value(self, x: Tensor) -> float:
        problem = self._problem
        losses = (problem.weights * problem.losses(x)).double()
        return float(self._reduce.scalars(losses[:, None])) / problem.scale


def line_of(problem: Problem, reduce: Reducer) -> Line:
    """The cheapest one."""
    return LinearLine(problem, reduce) if isinstance(problem, LinearProblem) else AnyLine(problem, reduce)
