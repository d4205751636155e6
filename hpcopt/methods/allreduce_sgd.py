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
from hpcopt.config.methods import AllreduceSGDTable
from hpcopt.math import optimizers
from hpcopt.math.flat import buffer
from hpcopt.methods.base import Method, State, StepInfo, replicated
from hpcopt.problems.base import Draw, Problem


@dataclass
class AllreduceSGDState(State):
    """Parameters and moments."""

    x: Tensor = replicated()
    m: Tensor = replicated()
    v: Tensor = replicated()


class AllreduceSGD(Method[AllreduceSGDState]):
    """SGD, momentum or Adam, one allreduce of d numbers per round, one gradient buffer, no copies."""

    table = AllreduceSGDTable

    def start(self, problem: Problem, ports: Ports) -> AllreduceSGDState:
        """See `Method`."""
        self._problem, self._reduce = problem, ports.reduce
        x = problem.initial().clone()
        rows = (problem.share.n,) if ports.reduce.form == "weighted" else ()
        self._g = buffer((*rows, problem.dim), like=x)
        return AllreduceSGDState(0, x, *optimizers.moments(self.settings, x))

    def step(self, state: AllreduceSGDState) -> StepInfo:
        """One round: g ← Σ ω_n ∇f_n(x); x ← x − η · update(g)."""
        draw = Draw(state.round)
        if self._reduce.form == "weighted":
            self._problem.gradients(state.x, draw, weighted=True, out=self._g.zero_())
            g = self._reduce.sum(self._g)
        else:
            total = self._reduce.begin(self._g)
            self._problem.total_gradient(state.x, draw, out=self._g, ready=total.ready)
            g = total.finish()
        optimizers.update(self.settings, state.x, g, state.m, state.v, state.round)
        return StepInfo()
