"""DePRL: gossip between neighbours of a shared representation; every worker keeps a head of its own.

Xiong, Yan, Wang & Li, "DePRL: Achieving linear convergence speedup in personalized decentralized learning
with shared representations", AAAI 2024, doi 10.1609/aaai.v38i14.29543.

symbol    name              shape     meaning
φ_i       X[:, shared]      (n, m)    worker i's representation
θ_i       X[:, private]     (n, d-m)  its head: the parameters whose names match problem.private; never sent
          M, V              (n, d)    moments of both (empty where the update has none); never sent
P         W                 (N, N)    mixing matrix of the round
α, β      lr_head, lr_body            learning rates
N ω_i     scales                      1, unless workers count by their rows: β is so many times as large
τ         head_steps                  steps on the head
          before            (n, m)    φ just before it was last mixed (empty unless asked for)

Differs from the paper: several steps on the representation (one is enough for the theory, but learns less),
also by epochs, as in the authors' code. Its mixing weights are uniform; here they are Metropolis by default,
so that the mean of φ is kept on every graph. With ``overlap`` φ_i ← Σ_j P_ij φ_j + the round's own steps:
what neighbours did in a round arrives one round later. ``order``: the paper's is "head_first". The
statistics of batch normalisation are the worker's own, see `dpsgd`; head steps update them too.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods.gossip import DePRLTable
from hpcopt.math.agreement import agreeing, scales
from hpcopt.math.flat import check_split
from hpcopt.methods.base import Method, StepInfo
from hpcopt.methods.parts.local_steps import LocalSteps, Stage
from hpcopt.problems.base import Problem
from hpcopt.state import State, per_worker


@dataclass(kw_only=True)
class DePRLState(State):
    """Representations and heads."""

    X: Tensor = per_worker()
    M: Tensor = per_worker()
    V: Tensor = per_worker()
    before: Tensor = per_worker()


class DePRL(Method[DePRLTable, DePRLState]):
    """Steps on the head, steps on the representation at the new head, and the representation is mixed."""

    model_field = "X"
    agreed = "shared"

    def prepare(self, problem: Problem) -> None:
        """See `Method`.

        Raises:
            UserError: no parameter is private, or all are; or as `agreeing`.
        """
        check_split(problem.layout, "DePRL")
        self._mixing, self._note = agreeing(self.settings, problem, weighs=True)

    def start(self, problem: Problem, ports: Ports) -> DePRLState:
        """See `Method`."""
        self._shared = problem.layout.shared
        self._steps, self._scales = LocalSteps(problem, self.settings), scales(problem, self.settings)
        self._neighbours = ports.neighbours(problem.initial()[self._shared], self._mixing)
        X = problem.rows_of(problem.dim).copy_(problem.initial())
        self._steps.assign(self._plan)
        M, V = self._steps.moments()
        kept = self._shared if self.settings.before_mixing else slice(0)
        return DePRLState(X=X, M=M, V=V, before=X[:, kept].clone())

    def notes(self) -> list[str]:
        """The graph, and how fast it mixes."""
        return [self._note]

    def step(self, state: DePRLState) -> StepInfo:
        """One round."""
        phi = state.X[:, self._shared]
        # with overlap: φ of the round's beginning goes to the neighbours
        sent = self._neighbours.begin(phi, state.round) if self.settings.overlap else None
        # θ_i ← θ_i − α ∇_θ f_i(φ_i, θ_i), τ times; φ_i ← φ_i − β ∇_φ f_i(φ_i, θ_i), at the new head
        self._steps.make_all(state.X, state.M, state.V, state.round)
        if self.settings.before_mixing:
            state.before.copy_(phi)
        # φ_i ← Σ_j P_ij φ_j; with overlap: φ_i ← φ_i + Σ_j P_ij sent_j − sent_i
        if sent is None:
            self._neighbours.mix(phi, state.round)
        else:
            self._neighbours.finish(phi, sent)
        return StepInfo()

    def _plan(self, i: int) -> list[Stage]:
        """What worker i does in a round before it mixes; one worker does all of it before the next begins."""
        settings = self.settings
        alpha, beta = settings.lr_head or settings.lr, (settings.lr_body or settings.lr) * self._scales[i]
        head = self._steps.count(i, settings.head_steps, settings.head_epochs)
        body = self._steps.count(i, settings.body_steps, settings.body_epochs)
        of = head + body
        if settings.order == "together":
            # x_i ← x_i − (β ∇_φ f_i, α ∇_θ f_i), body times
            return [Stage({"shared": beta, "private": alpha}, range(body), body)]
        if settings.order == "body_first":
            return [
                Stage({"shared": beta}, range(body), of),
                Stage({"private": alpha}, range(body, of), of),
            ]
        return [
            Stage({"private": alpha}, range(head), of),
            Stage({"shared": beta}, range(head, of), of),
        ]

    def others(self, state: DePRLState) -> dict[str, Tensor]:
        """The models "before_mixing"."""
        if not self.settings.before_mixing:
            return {}
        X = state.X.clone()
        X[:, self._shared] = state.before
        return {"before_mixing": X}
