"""FedAvg with all workers in every round: own steps from a common model, then the weighted mean.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017,
arXiv 1602.05629.

symbol    name      shape     meaning
x         x         (d,)      the model, replicated
x_i       x_i       (d,)      worker i's copy during its steps; one after the other
m         m         (d,)      its momentum, which begins at 0 in every round
ω_i                           the worker's weight in the objective (problem.weights)
          before    (n, d)    all x_i before the mean (empty unless asked for)

The model is evaluated on each worker's own test rows, like those of methods with models of the workers' own,
and as "global" on all.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods import FedAvgTable
from hpcopt.math.flat import buffer
from hpcopt.methods.base import Method, State, StepInfo, per_worker, replicated
from hpcopt.methods.gossip import local_phase, rows_of
from hpcopt.methods.own_steps import OwnSteps
from hpcopt.problems.base import Problem


@dataclass
class FedAvgState(State):
    """The common model, and what it is the mean of."""

    x: Tensor = replicated()
    before: Tensor = per_worker()


class FedAvg(Method[FedAvgState]):
    """local_steps on every worker's copy, one sum of d numbers per round, no memory per worker."""

    table = FedAvgTable

    def start(self, problem: Problem, ports: Ports) -> FedAvgState:
        """See `Method`."""
        self._problem, self._reduce = problem, ports.reduce
        self._own = OwnSteps(problem, self.settings)
        self._phases = [local_phase(self._own, i, self.settings) for i in range(problem.share.n)]
        x = problem.initial().clone()
        self._x_i = buffer((problem.dim,), like=x)
        self._m = buffer((problem.dim if self.settings.momentum else 0,), like=x)
        rows = (problem.share.n,) if ports.reduce.form == "weighted" else ()
        self._part = buffer((*rows, problem.dim), like=x)
        kept = problem.dim if self.settings.before_mixing else 0
        return FedAvgState(0, x, rows_of(problem, kept).copy_(x[:kept]))

    def step(self, state: FedAvgState) -> StepInfo:
        """One round."""
        self._part.zero_()
        for i, phases in enumerate(self._phases):
            # x_i ← x
            x_i, m = self._x_i.copy_(state.x), self._m.zero_()
            # x_i ← x_i − η ∇f_i(x_i), local_steps times
            for phase in phases:
                self._own.make(i, x_i, m, phase, state.round)
            part = self._part if self._reduce.form == "sum" else self._part[i]
            part.add_(x_i, alpha=float(self._problem.weights[i]))
            if len(state.before[i]):
                state.before[i] = x_i
        # x ← Σ ω_i x_i
        state.x.copy_(self._reduce.sum(self._part))
        return StepInfo()

    def model(self, state: FedAvgState) -> Tensor:
        """The common model, as every worker's own."""
        return state.x.expand(self._problem.share.n, -1)

    def others(self, state: FedAvgState) -> dict[str, Tensor]:
        """The common model as "global", and what it is the mean of as "before_mixing"."""
        points = {"global": state.x}
        if len(state.before[0]):
            points["before_mixing"] = state.before
        return points
