"""DePRL: gossip between neighbours of a shared representation; every worker keeps a head of its own.

Xiong, Yan, Wang & Li, "DePRL: Achieving linear convergence speedup in personalized decentralized learning
with shared representations", AAAI 2024, doi 10.1609/aaai.v38i14.29543.

symbol    name              shape     meaning
φ_i       X[:, shared]      (n, m)    worker i's representation
θ_i       X[:, private]     (n, d-m)  its head: the parameters whose names match problem.private; never sent
          M                 (n, d)    momentum of both (empty if there is none); never sent
P         W                 (N, N)    mixing matrix of the round
α, β      lr_head, lr_body            learning rates
τ         head_steps                  steps on the head

Differs from the paper: several steps on the representation (one is enough for the theory, but learns less),
also by epochs, as in the authors' code. Its mixing weights are uniform; here they are Metropolis by default,
so that the mean of φ is kept on every graph. With ``overlap`` φ_i ← Σ_j P_ij φ_j + the round's own steps:
what neighbours did in a round arrives one round later. ``order``: the paper's is "head_first". The
statistics of batch normalisation are the worker's own, see `gossip`; head steps update them too.
"""

from __future__ import annotations

from typing import ClassVar

from hpcopt.config.methods import DePRLTable
from hpcopt.methods.gossip import Gossip
from hpcopt.methods.own_steps import Phase
from hpcopt.problems.base import Part, Problem, check_split


class DePRL(Gossip):
    """Steps on the head, steps on the representation at the new head, and the representation is mixed."""

    table = DePRLTable
    mixed: ClassVar[Part] = "shared"

    def prepare(self, problem: Problem) -> None:
        """See `Method`.

        Raises:
            UserError: no parameter is private, or all are; or as for all that mix.
        """
        check_split(problem.layout, "DePRL")
        super().prepare(problem)

    def _plan(self, i: int) -> list[Phase]:
        """What worker i does in a round before it mixes."""
        settings = self.settings
        alpha, beta = settings.lr_head or settings.lr, settings.lr_body or settings.lr
        head = self._own.count(i, settings.head_steps, settings.head_epochs)
        body = self._own.count(i, settings.body_steps, settings.body_epochs)
        if settings.order == "together":
            # x_i ← x_i − (β ∇_φ f_i, α ∇_θ f_i), body times
            return [Phase({"shared": beta, "private": alpha}, range(body), body)]
        of = head + body
        if settings.order == "body_first":
            return [
                Phase({"shared": beta}, range(body), of),
                Phase({"private": alpha}, range(body, of), of),
            ]
        return [
            # θ_i ← θ_i − α ∇_θ f_i(φ_i, θ_i), τ times
            Phase({"private": alpha}, range(head), of),
            # φ_i ← φ_i − β ∇_φ f_i(φ_i, θ_i), at the new head
            Phase({"shared": beta}, range(head, of), of),
        ]
