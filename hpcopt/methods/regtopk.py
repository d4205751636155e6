"""RegTop-k: Top-k whose scores count how much of what was sent survived aggregation.

Bereyhi, Liang, Boudreau & Afana, "Regularized Top-k: A Bayesian Framework for Gradient Sparsification",
arXiv 2501.05633; first version MLSP 2024, arXiv 2409.14893.

symbol    name    shape     meaning
x         x       (d,)      parameters, replicated
          m, v    (d,)      moments of the update rule, which is applied to the aggregate
ε_n       e       (n, d)    error memory: what worker n has not sent yet (empty if every round is dense)
a_n       a       (n, d)    ε_n + g_n, in the same memory
s_n       s       (n, k)    which entries worker n sent last round
ω_n â_n   sent    (n, k)    what it sent there
g_prev    back    (n, k)    the aggregate there
          counts  (2,)      entries that each worker sent last round, and entries of their sum

k here is the most entries that a worker sends in any round; there is no more communication than with Top-k.
Everything that belongs to worker n is kept multiplied by its weight ω_n, so that aggregates are plain sums:
e is the paper's ω_n ε_n, a its ω_n a_n. The learning rate never enters e.

Differs from the paper: scores are divided by the constant tanh(Q/μ), so that entries that were not sent keep
the score |a|; where nothing was sent (â = 0) the score is |a| too. An entry that a global selection dropped
counts as not sent. Where k = d the round is that of `allreduce_sgd`, and nothing of it is remembered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods.first_order import RegTopKTable
from hpcopt.math.entries import Largest
from hpcopt.math.topk import survival, take
from hpcopt.methods.base import Method, StepInfo
from hpcopt.methods.parts.error_feedback import (
    ErrorFeedback,
    SparseExchange,
    SparseState,
    densities,
    last_sent,
)
from hpcopt.problems.base import Problem
from hpcopt.state import per_worker


@dataclass(kw_only=True)
class RegTopKState(SparseState):
    """And last round's masks, what was sent on them, and what came back."""

    s: Tensor = per_worker()
    sent: Tensor = per_worker()
    back: Tensor = per_worker()


class RegTopK(Method[RegTopKTable, RegTopKState]):
    """Score = |a| · tanh(|1 + Δ|/μ); one sum of sparse vectors per round."""

    def start(self, problem: Problem, ports: Ports) -> RegTopKState:
        """See `Method`; raises `UserError` if k is larger than the number of parameters."""
        self._exchange = SparseExchange(self.settings, problem, ports)
        self._feedback = ErrorFeedback(self.settings, problem, ports.reduce, self._exchange.density)
        self._largest = Largest(self._feedback.count)
        begin, kept = self._feedback.begin(), (problem.share.n, self._feedback.count.most)
        x = begin["x"]
        s = torch.zeros(kept, dtype=torch.int64, device=x.device)
        return RegTopKState(**begin, s=s, sent=x.new_zeros(kept), back=x.new_zeros(kept))

    def step(self, state: RegTopKState) -> StepInfo:
        """One round: what each worker has, what it sends, what it keeps, what comes back."""
        k = self._feedback.count.at(state.round)
        if k == len(state.x):
            self._feedback.dense_round(state)
            return StepInfo()
        # a = ε + g
        a = self._feedback.accumulate(state)
        # s = the k largest |a| · tanh(|1 + Δ| / μ)
        s = self._choose(a, state)
        # send the raw a on s; ε = a − s∘a
        sent = take(a, s)
        # g = Σ s_n∘a_n
        g = self._exchange.sum(state, s, sent)
        # the next round's s_n, â_n and g_prev
        state.s[:, :k], state.sent[:, :k], state.back[:, :k] = s, sent, g.dense[s]
        # x ← x − η g
        self._feedback.apply(state, g.dense, g.support, k)
        return StepInfo()

    def _choose(self, a: Tensor, state: RegTopKState) -> Tensor:
        """Where the k largest scores are; a holds the scores meanwhile, where they differ from it."""
        last = slice(0, last_sent(state)[0])
        s, sent, back = state.s[:, last], state.sent[:, last], state.back[:, last]
        raw = a.gather(1, s)
        # Δ = (g_prev − ω_n â) / (ω_n â) on the entries this worker sent last round, or over ω_n a
        over = raw if self.settings.denominator == "accumulated" else None
        a.scatter_(1, s, raw * survival(sent, back, self.settings.mu, over))
        chosen = self._largest(a, state.round)
        a.scatter_(1, s, raw)
        return chosen

    def metrics(self, state: RegTopKState) -> dict[str, float]:
        """``density`` and ``density_union``."""
        return densities(state)
