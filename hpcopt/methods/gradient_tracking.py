"""Gradient tracking: gossip that also mixes an estimate of the mean gradient, for heterogeneous data.

Nedić, Olshevsky & Shi, "Achieving geometric convergence for distributed optimization over time-varying
graphs" (DIGing), SIAM J. Optim. 2017, arXiv 1607.03218; with the mixing after the steps, Xu et al., CDC 2015.

symbol    name    shape     meaning
x_i       X       (n, d)    worker i's parameters
y_i       Y       (n, d)    its estimate of Σ ω_j ∇f_j(x_j), which is the mean of y
g_i       G       (n, d)    its gradient N ω_i ∇f_i of the last round
          M, V    (n, d)    first and second moments of y_i (empty where the update has none); never sent
          before  (n, d)    X just before it was last mixed (empty unless asked for)
W                 (N, N)    mixing matrix of the round

With a constant η and full batches all workers go to a minimum of Σ f_n, which D-PSGD does not; W must be
doubly stochastic, or the mean of y is not that of the gradients. With mixing = "weighted" gradients are as
they are, and W keeps Σ ω_i y_i.

Differs from the paper: adapt, then combine: x ← W(x − η y), not W x − η y; gradients may be those of
mini-batches. Gradients are multiplied by N ω_i, which is 1 where workers count the same. y_i may take any
first-order step in place of η y_i: with Adam, Carnevale, Farina, Notarnicola & Notarstefano, "GTAdam",
IEEE TCNS 10(3), 2023, arXiv 2009.01745. Clipping, too, shortens y_i where it is applied, and not the
gradients that it adds up: at a minimum of Σ f_n these add up to 0, which shortened ones do not where data
differ.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods.gossip import GradientTrackingTable
from hpcopt.math.agreement import agreeing, scales
from hpcopt.math.optimizers import FirstOrderUpdate
from hpcopt.methods.base import Method, StepInfo
from hpcopt.problems.base import Draw, Problem
from hpcopt.state import State, per_worker


@dataclass(kw_only=True)
class GradientTrackingState(State):
    """Models, trackers and the gradients that they hold."""

    X: Tensor = per_worker()
    Y: Tensor = per_worker()
    G: Tensor = per_worker()
    M: Tensor = per_worker()
    V: Tensor = per_worker()
    before: Tensor = per_worker()


class GradientTracking(Method[GradientTrackingTable, GradientTrackingState]):
    """One gradient and two exchanges per round."""

    model_field = "X"

    def prepare(self, problem: Problem) -> None:
        """See `Method`; raises as `agreeing`."""
        self._mixing, self._note = agreeing(self.settings, problem, keeps_mean=True, weighs=True)

    def start(self, problem: Problem, ports: Ports) -> GradientTrackingState:
        """See `Method`."""
        self._problem = problem
        self._scales = problem.weights.new_tensor(scales(problem, self.settings))[:, None]
        self._neighbours = ports.neighbours(problem.initial(), self._mixing)
        self._update = FirstOrderUpdate(self.settings)
        X = problem.rows_of(problem.dim).copy_(problem.initial())
        Y, G = problem.rows_of(problem.dim).zero_(), problem.rows_of(problem.dim).zero_()
        M, V = self._update.moments(X)
        kept = problem.dim if self.settings.before_mixing else 0
        return GradientTrackingState(X=X, Y=Y, G=G, M=M, V=V, before=X[:, :kept].clone())

    def notes(self) -> list[str]:
        """The graph, and how fast it mixes."""
        return [self._note]

    def step(self, state: GradientTrackingState) -> StepInfo:
        """One round."""
        # y_i ← y_i + N ω_i ∇f_i(x_i; now) − N ω_i ∇f_i(x_i; last round)
        state.Y.sub_(state.G)
        self._problem.gradients(state.X, Draw(state.round), out=state.G.zero_()).mul_(self._scales)
        state.Y.add_(state.G)
        # x_i ← x_i − η · update(y_i)
        self._update(state.X, state.Y, state.M, state.V, state.round, keep=True)
        if self.settings.before_mixing:
            state.before.copy_(state.X)
        # x_i ← Σ_j W_ij x_j; y_i ← Σ_j W_ij y_j
        self._neighbours.mix(state.X, state.round)
        self._neighbours.mix(state.Y, state.round)
        return StepInfo()

    def others(self, state: GradientTrackingState) -> dict[str, Tensor]:
        """The models "before_mixing"."""
        return {"before_mixing": state.before} if self.settings.before_mixing else {}
