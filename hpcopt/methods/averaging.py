"""One-shot averaging: every worker minimises its own objective, and the models are averaged.

Zinkevich, Weimer, Smola & Li, "Parallelized stochastic gradient descent", NeurIPS 2010; Zhang, Duchi &
Wainwright, "Communication-efficient algorithms for statistical optimization", JMLR 14, 2013.

symbol    name    shape     meaning
w         w       (d,)      the model, replicated
f_p                         λ/2 ‖w‖² + (n/n_p) Σ_{i of worker p} l(w·x_i), the objective as worker p sees it

One round and one pass, whatever the accuracy: with N workers the error of the average is that of a model of
all rows plus what the bias of a model of few rows is, which no averaging removes.

Differs from the papers: workers minimise exactly, by Newton's method. A worker without rows takes no part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods.linear import AveragingTable
from hpcopt.math.krylov import conjugate_gradients
from hpcopt.math.linesearch import search
from hpcopt.methods.base import Method, StepInfo
from hpcopt.methods.parts.linear import linear
from hpcopt.problems.base import Problem
from hpcopt.problems.linear_problem import LinearProblem
from hpcopt.state import State, replicated

CG_TOLERANCE, CG_ITERATIONS, STEPS = 0.1, 1000, 100
"""of the workers' Newton steps: as `tron` has them, and the most of them"""


@dataclass(kw_only=True)
class AveragingState(State):
    """The model."""

    w: Tensor = replicated()


class Averaging(Method[AveragingTable, AveragingState]):
    """w = Σ weight_p argmin f_p; one round, one pass."""

    model_field = "w"

    def prepare(self, problem: Problem) -> None:
        """See `Method`; raises `UserError` if the problem is not linear."""
        linear(problem, "averaging")

    def start(self, problem: Problem, ports: Ports) -> AveragingState:
        """See `Method`."""
        self._problem = linear(problem, "averaging")
        self._sum = ports.reduce.contribution(problem.dim)
        self._weights = self._problem.weights.tolist()
        if self.settings.combination == "uniform":
            some = (problem.rows > 0).double()
            self._weights = (some / ports.reduce.scalars(some[:, None])).tolist()
        return AveragingState(w=problem.initial().clone())

    def step(self, state: AveragingState) -> StepInfo:
        """The one round."""
        for i, weight in enumerate(self._weights):
            if weight:
                # w_p = argmin f_p
                w = minimum(self._problem, i, self.settings.inner_tolerance)
                self._sum.add(i, w, weight)
        # w = Σ weight_p w_p: one pass
        state.w.copy_(self._sum.sum())
        return StepInfo(done=True)


def minimum(problem: LinearProblem, i: int, tolerance: float) -> Tensor:
    """argmin f_i, (d,), of worker i (from 0 here), until ‖∇f_i‖ ≤ tolerance ‖∇f_i(0)‖. Local."""
    loss, strength, y = problem.loss, problem.regularisation, problem.y[problem.span(i)]
    X, factor = problem.rows_of_worker(i), problem.total_rows / len(y)
    # what has no column of its own rows is 0 at the minimum
    columns, X = X.compressed() or (None, X)
    w = problem.y.new_zeros(X.shape[1])
    z, first = torch.zeros_like(y), 0.0
    for _ in range(STEPS):
        g = torch.add(strength * w, X.transposed_times(loss.slope(z, y)), alpha=factor)
        norm = float(g.norm())
        first = first or norm
        if norm <= tolerance * first:
            break
        D = factor * loss.curvature(z, y)

        def hessian(v: Tensor, D: Tensor = D) -> Tensor:
            return strength * v + X.transposed_times(D * X.times(v))

        step = conjugate_gradients(hessian, g, CG_ITERATIONS, tolerance=CG_TOLERANCE)
        problem.samples += (1 + step.products) * len(y)
        s, e = step.s, X.times(step.s)

        def along(
            t: float, w: Tensor = w, z: Tensor = z, s: Tensor = s, e: Tensor = e
        ) -> tuple[float, float]:
            there, margins = torch.add(w, s, alpha=t), torch.add(z, e, alpha=t)
            value = strength / 2 * torch.dot(there, there) + factor * loss.value(margins, y).sum()
            slope = strength * torch.dot(there, s) + factor * torch.dot(loss.slope(margins, y), e)
            return float(value), float(slope)

        value, slope = along(0.0)
        t = search(along, value, slope, slack=torch.finfo(w.dtype).eps * abs(value), patient=True).t
        if t == 0:
            break
        w, z = torch.add(w, s, alpha=t), torch.add(z, e, alpha=t)
    return w if columns is None else w.new_zeros(problem.dim).index_copy_(0, columns, w)
