"""Heavy ball with plain outer momentum, beside DHO2's ADMM: what its outer steps do without curvature.

symbol  name  shape  meaning
x       x     (d,)   parameters
m       m     (d,)   heavy ball's momentum
u, z    u, z  (d,)   outer momentum, and x as it was after the last outer step

Wang, Tantia, Ballas & Rabbat, "SlowMo", ICLR 2020, arXiv 1910.00643, with an outer rate of 1 and one base
optimiser, whose momentum goes on. ADMM's u = π/σ obeys the same recursion with β = 1 − outer_damping; its
step begins at x, not at z, and π = σ u is part of the gradient in between.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import hpcopt
from hpcopt.config.base import Count, FirstOrder, Fraction
from hpcopt.math.optimizers import FirstOrderUpdate


class OuterMomentumTable(FirstOrder):
    """Heavy ball, and every so many rounds a step of its own on the displacement since the last one."""

    outer_every: Count = 100
    """c, rounds between outer steps"""
    outer_momentum: Fraction = 0.5
    """β: which part of the sum of displacements stays from one outer step to the next"""


@dataclass(kw_only=True)
class OuterMomentumState(hpcopt.State):
    """Parameters, both momenta and the anchor."""

    x: Tensor = hpcopt.replicated()
    m: Tensor = hpcopt.replicated()
    v: Tensor = hpcopt.replicated()
    u: Tensor = hpcopt.replicated()
    z: Tensor = hpcopt.replicated()


class OuterMomentum(hpcopt.Method[OuterMomentumTable, OuterMomentumState]):
    """One allreduce of d numbers per round; outer steps cost none."""

    def start(self, problem: hpcopt.Problem, ports: hpcopt.Ports) -> OuterMomentumState:
        """See `hpcopt.Method`."""
        self._problem, self._reduce = problem, ports.reduce
        self._update = FirstOrderUpdate(self.settings)
        x = problem.initial().clone()
        m, v = self._update.moments(x)
        return OuterMomentumState(x=x, m=m, v=v, u=x.new_zeros(len(x)), z=x.clone())

    def step(self, state: OuterMomentumState) -> hpcopt.StepInfo:
        """One round."""
        settings, x = self.settings, state.x
        # m ← μ m + Σ ω_n ∇f_n(x); x ← x − η m
        g = self._reduce.gradient(self._problem, x, hpcopt.Draw(state.round))
        self._update(x, g, state.m, state.v, state.round)
        if (state.round + 1) % settings.outer_every == 0:
            # u ← β u + (x − z); x ← z + u; z = x
            state.u.mul_(settings.outer_momentum).add_(x - state.z)
            x.copy_(state.z.add_(state.u))
        return hpcopt.StepInfo()
