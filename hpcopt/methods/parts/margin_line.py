"""The objective of a linear problem on a line, from margins that are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hpcopt.comm.ports import Reducer
    from hpcopt.math.linesearch import Along
    from hpcopt.problems.linear_problem import LinearProblem


class MarginLine:
    """f(w) = λ/2 ‖w‖² + Σ l(z) without a product with X: what travels is one or two numbers of each worker.

    symbol    shape    meaning
    w, d      (d,)     where the line begins, and its direction, the same on every rank
    z, e      (r,)     X w and X d of the rows here

    Args:
        problem: the workers here.
        reduce: for the sums over workers.
    """

    def __init__(self, problem: LinearProblem, reduce: Reducer) -> None:
        self._problem, self._reduce = problem, reduce

    def value(self, w: Tensor, z: Tensor) -> float:
        """f(w). Collective."""
        problem = self._problem
        sums = problem.sums(problem.of_rows(problem.loss.value, z)[:, None])
        return problem.regularisation / 2 * _dot(w, w) + float(self._reduce.scalars(sums))

    def along(self, w: Tensor, d: Tensor, z: Tensor, e: Tensor) -> Along:
        """t -> f(w + t d) and its derivative in t, for `hpcopt.math.linesearch.search`. Collective."""
        problem, reduce = self._problem, self._reduce
        loss, strength = problem.loss, problem.regularisation
        ww, wd, dd = _dot(w, w), _dot(w, d), _dot(d, d)

        def at(t: float) -> tuple[float, float]:
            # [Σ l(z + t e), Σ l'(z + t e) e]
            moved = torch.add(z, e, alpha=t)
            values, slopes = (problem.of_rows(of, moved) for of in (loss.value, loss.slope))
            pair = torch.stack([values, slopes * e], 1)
            value, slope = reduce.scalars(problem.sums(pair)).tolist()
            # λ/2 ‖w + t d‖² and its derivative, exactly
            value += strength / 2 * (ww + 2 * t * wd + t * t * dd)
            return value, slope + strength * (wd + t * dd)

        return at


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.double(), b.double()))
