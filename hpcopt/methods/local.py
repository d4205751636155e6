"""Every worker trains on its own rows, and nothing is ever sent: what has to be beaten.

symbol    name    shape     meaning
x_i       X       (n, d)    worker i's parameters
          M, V    (n, d)    its first and second moments (empty where the update has none)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods.gossip import LocalTable
from hpcopt.methods.base import Method, StepInfo
from hpcopt.methods.parts.local_steps import LocalSteps
from hpcopt.problems.base import Problem
from hpcopt.state import State, per_worker


@dataclass(kw_only=True)
class LocalState(State):
    """Models of the workers' own."""

    X: Tensor = per_worker()
    M: Tensor = per_worker()
    V: Tensor = per_worker()


class Local(Method[LocalTable, LocalState]):
    """Own steps and no exchange."""

    model_field = "X"

    def start(self, problem: Problem, ports: Ports) -> LocalState:
        """See `Method`."""
        settings = self.settings
        self._steps = LocalSteps(problem, settings)
        X = problem.rows_of(problem.dim).copy_(problem.initial())
        steps = settings.local_steps, settings.local_epochs
        self._steps.assign(lambda i: [self._steps.stage(i, *steps)])
        M, V = self._steps.moments()
        return LocalState(X=X, M=M, V=V)

    def notes(self) -> list[str]:
        """What the loss is of."""
        return ["no exchange: the loss is Σ ω_n f_n(x_n) of the workers' own models, no common objective"]

    def step(self, state: LocalState) -> StepInfo:
        """One round."""
        # x_i ← x_i − η ∇f_i(x_i), local_steps times
        self._steps.make_all(state.X, state.M, state.V, state.round)
        return StepInfo()
