"""D-PSGD: workers make steps on their own and average their models with their neighbours'; no centre.

Lian et al., "Can decentralized algorithms outperform centralized algorithms?", NeurIPS 2017, arXiv
1705.09056.

symbol    name      shape     meaning
x_i       X         (n, d)    worker i's parameters
          M, V      (n, d)    its first and second moments (empty where the update has none); kept from round
                              to round, never sent
W                   (N, N)    mixing matrix of the round, see `hpcopt.math.mixing`
N ω_i     scales              1, unless workers count by their rows: how long a worker's steps are (1, too,
                              with mixing = "weighted", whose W keeps Σ ω_i x_i)
          before    (n, d)    X just before it was last mixed (empty unless asked for)

All workers begin at the same point. Statistics of batch normalisation are those of the worker's own rows:
they are never sent, and the mean model is evaluated with their mean.

Differs from the paper: several steps per round; they come first and are mixed too (adapt, then combine),
where the paper adds them to the mixed models, which is what ``overlap`` does: X ← W X + steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods.gossip import DPSGDTable
from hpcopt.math.agreement import agreeing, scales
from hpcopt.methods.base import Method, StepInfo
from hpcopt.methods.parts.local_steps import LocalSteps
from hpcopt.problems.base import Problem
from hpcopt.state import State, per_worker


@dataclass(kw_only=True)
class DPSGDState(State):
    """Models of the workers' own."""

    X: Tensor = per_worker()
    M: Tensor = per_worker()
    V: Tensor = per_worker()
    before: Tensor = per_worker()


class DPSGD(Method[DPSGDTable, DPSGDState]):
    """Own steps, then x_i ← Σ_j W_ij x_j: everything is mixed."""

    model_field = "X"

    def prepare(self, problem: Problem) -> None:
        """See `Method`; raises as `agreeing`."""
        self._mixing, self._note = agreeing(self.settings, problem, weighs=True)

    def start(self, problem: Problem, ports: Ports) -> DPSGDState:
        """See `Method`."""
        settings, d = self.settings, problem.dim
        self._steps = LocalSteps(problem, settings)
        self._neighbours = ports.neighbours(problem.initial(), self._mixing)
        X = problem.rows_of(d).copy_(problem.initial())
        steps, longer = (settings.local_steps, settings.local_epochs), scales(problem, settings)
        self._steps.assign(lambda i: [self._steps.stage(i, *steps, longer[i])])
        M, V = self._steps.moments()
        return DPSGDState(X=X, M=M, V=V, before=X[:, : d if settings.before_mixing else 0].clone())

    def notes(self) -> list[str]:
        """The graph, and how fast it mixes."""
        return [self._note]

    def step(self, state: DPSGDState) -> StepInfo:
        """One round."""
        # with overlap: x of the round's beginning goes to the neighbours
        sent = self._neighbours.begin(state.X, state.round) if self.settings.overlap else None
        # x_i ← x_i − η N ω_i ∇f_i(x_i), local_steps times
        self._steps.make_all(state.X, state.M, state.V, state.round)
        if self.settings.before_mixing:
            state.before.copy_(state.X)
        # x_i ← Σ_j W_ij x_j; with overlap: x_i ← x_i + Σ_j W_ij sent_j − sent_i
        if sent is None:
            self._neighbours.mix(state.X, state.round)
        else:
            self._neighbours.finish(state.X, sent)
        return StepInfo()

    def others(self, state: DPSGDState) -> dict[str, Tensor]:
        """The models "before_mixing"."""
        return {"before_mixing": state.before} if self.settings.before_mixing else {}
