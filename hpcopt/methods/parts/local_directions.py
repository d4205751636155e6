"""Directions that workers find on their own with their models of f, averaged: the heart of FADL.

symbol    name        shape       meaning
z         z           (r,)        margins X w of the rows here
g         g           (d,)        ∇f(w), the same on every rank
d_p                   (|S| + 1,)  worker p's step: some inner iterations on f̂_p from w
          weights     (n,)        of the d_p: 0 without rows, and 1 in all over the N workers
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from hpcopt.math.trust_region import steihaug
from hpcopt.methods.parts.local_models import LocalModel, Support, factors

if TYPE_CHECKING:
    from hpcopt.comm.ports import Reducer
    from hpcopt.config.methods import LocalModelsTable
    from hpcopt.problems.linear_problem import LinearProblem


class LocalDirections:
    """The average of the workers' steps.

    Args:
        settings: approximation, inner solver, weights and angle.
        problem: the workers here.
        reduce: for the sums over workers. Collective.
        otherwise: what a worker gives whose step is no descent: −g (``"gradient"``), or ``"nothing"``.
        combination: in place of the settings'.
    """

    def __init__(
        self,
        settings: LocalModelsTable,
        problem: LinearProblem,
        reduce: Reducer,
        otherwise: Literal["gradient", "nothing"] = "gradient",
        combination: Literal["uniform", "rows"] | None = None,
    ) -> None:
        self._settings, self._problem, self._reduce = settings, problem, reduce
        self._otherwise = otherwise
        self._supports = [Support(problem.rows_of_worker(i)) for i in range(problem.share.n)]
        self._sum = reduce.contribution(problem.dim)
        self._weights = self._weigh(combination or settings.combination)

    def direction(self, z: Tensor, g: Tensor, inner_iterations: int, round: int = 0) -> Tensor:
        """d = Σ_p weight_p d_p, (d,), the same bits on every rank, until the next call. One pass; collective.

        Args:
            z: margins X w of the rows here, (r,).
            g: ∇f(w), (d,).
            inner_iterations: k̂.
            round: for solvers that draw rows.
        """
        square, alphas = float(torch.dot(g, g)), z.new_zeros(len(self._supports), 1)
        for i, weight in enumerate(self._weights):
            if weight == 0:
                continue
            model = self._model(i, z, g, square)
            d = self._solve(model, inner_iterations, i, round)
            if self._descends(d, model.g):
                alphas[i] = self._supports[i].add_to(self._sum.of(i), d, model.g, weight)
            elif self._otherwise == "gradient":
                alphas[i] = -weight
        # d = (Σ weight_p α_p) g + Σ weight_p (d_p − α_p g), and the latter are 0 off the columns of worker p
        multiple = float(self._reduce.scalars(alphas))
        return self._sum.sum().add_(g, alpha=multiple)

    def _model(self, i: int, z: Tensor, g: Tensor, square: float) -> LocalModel:
        problem, support = self._problem, self._supports[i]
        rows = problem.span(i)
        mine, y = z[rows].clone(), problem.y[rows]
        a, b = factors(self._settings.approximation, problem.total_rows / len(y))
        slope, curvature = problem.loss.slope(mine, y), problem.loss.curvature(mine, y)
        q = support.take(g, square)
        return LocalModel(support, problem.loss, y, mine, slope, curvature, q, problem.regularisation, a, b)

    def _solve(self, model: LocalModel, iterations: int, i: int, round: int) -> Tensor:
        tiny = float(torch.finfo(model.g.dtype).eps)
        return steihaug(model.hessian(torch.zeros_like(model.z)), model.g, float("inf"), tiny, iterations).s

    def _descends(self, d: Tensor, g: Tensor) -> bool:
        """Whether cos∠(−g, d) is above 0 and at least the settings'."""
        fall, least = -float(torch.dot(g, d)), self._settings.angle * float(g.norm() * d.norm())
        return fall > 0 and fall >= least

    def _weigh(self, combination: str) -> list[float]:
        """Equal for all workers with rows, or in proportion to these."""
        if combination == "rows":
            return self._problem.weights.tolist()
        present = (self._problem.rows > 0).to(self._problem.weights)
        return (present / self._reduce.scalars(present[:, None])).tolist()
