"""FedAvg with all workers in every round: own steps from a common model, then the weighted mean.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017,
arXiv 1602.05629.

symbol    name      shape     meaning
x         x         (d,)      the model, replicated
x_i       X         (g, d)    the copies of a group of workers during their steps; one group after the other
m_i, v_i  M, V      (g, d)    their first and second moments, which begin at 0 in every round
ω_i                           the worker's weight in the objective (problem.weights)
          before    (n, d)    all x_i before the mean (empty unless asked for)

The model is evaluated on each worker's own test rows, like those of methods with models of the workers' own,
and as "global" on all.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods.gossip import FedAvgTable
from hpcopt.math.flat import buffer_of_rows
from hpcopt.math.optimizers import FirstOrderUpdate
from hpcopt.methods.base import Method, StepInfo
from hpcopt.methods.parts.local_steps import LocalSteps
from hpcopt.problems.base import Problem
from hpcopt.state import State, per_worker, replicated


@dataclass(kw_only=True)
class FedAvgState(State):
    """The common model, and what it is the mean of."""

    x: Tensor = replicated()
    before: Tensor = per_worker()


class FedAvg(Method[FedAvgTable, FedAvgState]):
    """local_steps on every worker's copy, one sum of d numbers per round, memory for a group of workers."""

    def start(self, problem: Problem, ports: Ports) -> FedAvgState:
        """See `Method`."""
        settings = self.settings
        self._problem, self._steps = problem, LocalSteps(problem, settings, anew=True)
        steps = settings.local_steps, settings.local_epochs
        self._groups = self._steps.assign(lambda i: [self._steps.stage(i, *steps)])
        x, most = problem.initial().clone(), max((len(g.workers) for g in self._groups), default=0)
        sizes = problem.dim, *FirstOrderUpdate(settings).sizes(problem.dim)
        self._own = [buffer_of_rows(most, size, like=x) for size in sizes]
        self._mean = ports.reduce.contribution(problem.dim)
        kept = problem.dim if settings.before_mixing else 0
        return FedAvgState(x=x, before=problem.rows_of(kept).copy_(x[:kept]))

    def step(self, state: FedAvgState) -> StepInfo:
        """One round."""
        for group in self._groups:
            # x_i ← x
            X, M, V = (of[: len(group.workers)] for of in self._own)
            X.copy_(state.x), M.zero_(), V.zero_()
            # x_i ← x_i − η ∇f_i(x_i), local_steps times
            self._steps.make(group, X, M, V, state.round)
            for i, x_i in zip(group.workers, X, strict=True):
                if self.settings.before_mixing:
                    state.before[i] = x_i
                self._mean.add(i, x_i, weight=float(self._problem.weights[i]))
        # x ← Σ ω_i x_i
        state.x.copy_(self._mean.sum())
        return StepInfo()

    def model(self, state: FedAvgState) -> Tensor:
        """The common model, as every worker's own."""
        return state.x.expand(self._problem.share.n, -1)

    def others(self, state: FedAvgState) -> dict[str, Tensor]:
        """The common model as "global", and what it is the mean of as "before_mixing"."""
        common = {"global": state.x}
        return common | {"before_mixing": state.before} if self.settings.before_mixing else common
