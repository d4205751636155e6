"""Directions that workers find on their own with their models of f, averaged: the heart of FADL.

symbol    name        shape       meaning
z         z           (r,)        margins X w of the rows here
g         g           (d,)        ∇f(w), the same on every rank
d_p       v           (|S| + 1,)  worker p's step: some inner iterations on f̂_p from w
          weights     (n,)        of the d_p: 0 without rows, and 1 in all over the N workers
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from hpcopt.math.krylov import conjugate_gradients
from hpcopt.math.streams import stream
from hpcopt.methods.parts.local_models import LocalModel, Support, factors
from hpcopt.methods.parts.local_solvers import descend, newton, sgd, svrg

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hpcopt.comm.ports import Reducer
    from hpcopt.config.methods.linear import LocalModelsTable
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
        # a learning rate is one for f/n, a mean over rows
        self._rate = None if settings.inner_lr is None else settings.inner_lr / problem.total_rows

    def direction(self, z: Tensor, g: Tensor, inner_iterations: int, round: int = 0) -> Tensor:
        """d = Σ_p weight_p d_p, (d,), the same bits on every rank, until the next call. One pass; collective.

        Args:
            z: margins X w of the rows here, (r,).
            g: ∇f(w), (d,).
            inner_iterations: k̂.
            round: for solvers that draw rows.
        """
        square, multiples = float(torch.dot(g, g)), g.new_zeros(len(self._supports), 1)
        for i, weight in self._present():
            model = self._model(i, z, g, square)
            v = self._solve(model, inner_iterations, i, round)
            if self._descends(v, model.g):
                multiples[i] = model.support.add_to(self._sum.of(i), v, model.g, weight)
            elif self._otherwise == "gradient":
                multiples[i] = -weight
        # d = (Σ weight_p α_p) g + Σ weight_p (d_p − α_p g), and the latter are 0 off the columns of worker p
        multiple = float(self._reduce.scalars(multiples))
        return self._sum.sum().add_(g, alpha=multiple)

    def warm_start(self, epochs: int) -> Tensor:
        """Σ_p weight_p w_p, w_p from SGD on f_p, begun at 0; (d,) as in `direction`. One pass; collective."""
        problem, nothing = self._problem, self._problem.initial()
        for i, weight in self._present():
            model = self._model(i, torch.zeros_like(problem.y), nothing, 0.0)
            orders = self._orders(i, epochs, 0)
            v = descend(model, torch.zeros_like(model.g), float(problem.total_rows), orders, self._rate)
            model.support.add_to(self._sum.of(i), v, model.g, weight)
        return self._sum.sum()

    def _present(self) -> list[tuple[int, float]]:
        """The workers here that take part, and their weights."""
        return [(i, weight) for i, weight in enumerate(self._weights) if weight > 0]

    def _model(self, i: int, z: Tensor, g: Tensor, square: float) -> LocalModel:
        """f̂_p of worker i here; all of its numbers come from its rows, wherever these are."""
        problem, support, rows = self._problem, self._supports[i], self._problem.span(i)
        z, y = z[rows].clone(), problem.y[rows].clone()
        return LocalModel(
            support,
            problem.loss,
            y,
            z,
            slope=problem.loss.slope(z, y),
            curvature=problem.loss.curvature(z, y),
            g=support.take(g, square),
            regularisation=problem.regularisation,
            factors=factors(self._settings.approximation, problem.total_rows / len(y)),
        )

    def _solve(self, model: LocalModel, iterations: int, i: int, round: int) -> Tensor:
        """v from k̂ iterations."""
        solver, approximation = self._settings.inner_solver, self._settings.approximation
        if solver in ("svrg", "sgd"):
            steps = svrg if solver == "svrg" else sgd
            return steps(model, self._orders(i, iterations, round), self._rate)
        if solver == "tron" or approximation not in ("quadratic", "adaptive"):
            return newton(model, iterations)
        hessian = model.hessian(torch.zeros_like(model.z))
        return conjugate_gradients(hessian, model.g, iterations, stable=True).s

    def _orders(self, i: int, passes: int, round: int) -> Iterator[NDArray[np.int64]]:
        """The rows of worker i in other orders, one for each pass."""
        share = self._problem.share
        draw = stream(share.seed, "local steps", share.workers[i], round)
        return (draw.permutation(int(self._problem.rows[i])) for _ in range(passes))

    def _descends(self, v: Tensor, g: Tensor) -> bool:
        """Whether cos∠(−g, v) is above 0 and at least the settings'."""
        fall, least = -float(torch.dot(g, v)), self._settings.angle * float(g.norm() * v.norm())
        return fall > 0 and fall >= least

    def _weigh(self, combination: str) -> list[float]:
        """Equal for all workers with rows, or in proportion to these."""
        if combination == "rows":
            return self._problem.weights.tolist()
        present = (self._problem.rows > 0).to(self._problem.weights)
        return (present / self._reduce.scalars(present[:, None])).tolist()
