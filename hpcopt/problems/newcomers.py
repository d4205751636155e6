"""Workers that come when training is over: how good is the representation that was learned, to others?

Newcomer k gets the representation φ̄ of the run's one model, which stays as it is, and fits private parameters
to its own rows, mini-batch by mini-batch, from the problem's initial values:

    θ_k ← θ_k − η ∇_θ f_k(φ̄, θ_k)

Its rows are no worker's training rows (where the partition lets workers share rows, some may be), and it has
test rows that are distributed like them, as workers have.

How it does so belongs to the problem and not to a method: methods are compared by what they learned, so what
comes after that has to be the same for all of them. At round 0 it is a head on an untrained representation,
which is what a learned one has to beat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcopt.math.flat import buffer_of_rows
from hpcopt.problems.base import Draw, Evaluation

if TYPE_CHECKING:
    from torch import Tensor

    from hpcopt.problems.base import Problem


class Newcomers:
    """The newcomers that live here.

    Args:
        problem: of their rows; None where none live here.
        steps: SGD steps that each of them makes on its private parameters.
        lr: their learning rate η, without momentum.
    """

    def __init__(self, problem: Problem | None, steps: int, lr: float) -> None:
        self._problem, self._steps, self._lr = problem, steps, lr

    def evaluate(self, x: Tensor, buffers: Tensor | None = None) -> Evaluation:
        """What `Problem.evaluate` tells of their models; nothing where none live here.

        Args:
            x: the run's one model, (d,); its private part is not used.
            buffers: (b,), what belongs to it; None if there are none.
        """
        problem = self._problem
        if problem is None:
            return Evaluation()
        if buffers is not None:
            problem.buffers.copy_(buffers)
        X = buffer_of_rows(problem.share.n, problem.dim, like=x).copy_(problem.initial())
        X[:, problem.layout.shared] = x[problem.layout.shared]
        for i, x_i in enumerate(X):
            self._fit(problem, i, x_i)
        found = problem.evaluate(X)
        found.rows.clear()  # there is one mean for them, that over those who came
        return found

    def _fit(self, problem: Problem, i: int, x: Tensor) -> None:
        """Makes the steps of newcomer i (from 0 here), in place; the same draws at every evaluation."""
        theta = problem.layout.tensors(x, "private")
        for step in range(self._steps):
            g = problem.gradient(i, x, Draw(0, step, self._steps), "private")
            for theta_p, g_p in zip(theta, g, strict=True):
                theta_p.add_(g_p, alpha=-self._lr)
