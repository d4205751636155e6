"""Synchronous SGD on the dense mean gradient: the baseline that every claim is measured against.

symbol  name  shape  meaning
x       x     (d,)   parameters, replicated
g       g     (d,)   Σ ω_n ∇f_n(x; batch of worker n)
m, v    m, v  (d,)   first and second moments (empty where the update rule has none)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods.first_order import AllreduceSGDTable
from hpcopt.math.optimizers import FirstOrderUpdate
from hpcopt.methods.base import Method, StepInfo
from hpcopt.problems.base import Draw, Problem
from hpcopt.state import State, replicated


@dataclass(kw_only=True)
class AllreduceSGDState(State):
    """Parameters and moments."""

    x: Tensor = replicated()
    m: Tensor = replicated()
    v: Tensor = replicated()


class AllreduceSGD(Method[AllreduceSGDTable, AllreduceSGDState]):
    """SGD, momentum or Adam, one allreduce of d numbers per round, one gradient buffer, no copies."""

    def start(self, problem: Problem, ports: Ports) -> AllreduceSGDState:
        """See `Method`."""
        self._problem, self._reduce = problem, ports.reduce
        self._update = FirstOrderUpdate(self.settings)
        x = problem.initial().clone()
        m, v = self._update.moments(x)
        return AllreduceSGDState(x=x, m=m, v=v)

    def step(self, state: AllreduceSGDState) -> StepInfo:
        """One round."""
        # g ← Σ ω_n ∇f_n(x)
        g = self._reduce.gradient(self._problem, state.x, Draw(state.round))
        # x ← x − η · update(g)
        self._update(state.x, g, state.m, state.v, state.round)
        return StepInfo()
