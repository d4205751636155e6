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
from hpcopt.config.methods import RegTopKTable
from hpcopt.math.optimizers import FirstOrderUpdate
from hpcopt.math.topk import survival
from hpcopt.methods.base import Method, State, StepInfo, per_worker, replicated
from hpcopt.methods.parts.sparsify import AUTO, EntryCount, ErrorMemory, Largest, densities, entries_sent
from hpcopt.problems.base import Draw, Problem


@dataclass(kw_only=True)
class RegTopKState(State):
    """Parameters, moments, error memories, last round's masks, what was sent on them, what came back."""

    x: Tensor = replicated()
    m: Tensor = replicated()
    v: Tensor = replicated()
    e: Tensor = per_worker()
    counts: Tensor = replicated()
    s: Tensor = per_worker()
    sent: Tensor = per_worker()
    back: Tensor = per_worker()


class RegTopK(Method[RegTopKTable, RegTopKState]):
    """Score = |a| · tanh(|1 + Δ|/μ); one sum of sparse vectors per round."""

    def start(self, problem: Problem, ports: Ports) -> RegTopKState:
        """See `Method`.

        Raises:
            UserError: k is larger than the number of parameters.
        """
        settings = self.settings
        self._problem, self._reduce = problem, ports.reduce
        self._sparse = ports.sparse_sum(problem.initial(), settings.exchange, settings.select)
        density = self._sparse.affordable(AUTO) if settings.density == "auto" else settings.density
        self._count = EntryCount(settings, problem.layout, density)
        self._largest, self._memory = Largest(self._count), ErrorMemory(problem)
        self._update = FirstOrderUpdate(settings)
        x = problem.initial().clone()
        m, v = self._update.moments(x)
        e = self._memory.empty(problem.dim if self._count.most else 0)
        kept = (problem.share.n, self._count.most)
        return RegTopKState(
            x=x,
            m=m,
            v=v,
            e=e,
            counts=torch.zeros(2, dtype=torch.int64),
            s=torch.zeros(kept, dtype=torch.int64, device=x.device),
            sent=x.new_zeros(kept),
            back=x.new_zeros(kept),
        )

    def step(self, state: RegTopKState) -> StepInfo:
        """One round: what each worker has, what it sends, what it keeps, what comes back."""
        k, draw = self._count.at(state.round), Draw(state.round)
        if k == self._problem.dim:
            g = self._reduce.gradient(self._problem, state.x, draw)
            self._update(state.x, g, state.m, state.v, state.round)
            state.counts.fill_(k)
            return StepInfo()
        # a = ε + g
        a = self._memory.accumulate(state.e, state.x, draw)
        # s = the k largest |a| · tanh(|1 + Δ| / μ)
        s = self._choose(a, state)
        # send the raw a on s; ε = a − s∘a
        sent = self._memory.take(a, s)
        # g = Σ s_n∘a_n
        aggregate = self._sparse.sum(s, sent, expected=entries_sent(state.counts, len(state.x))[1])
        if self.settings.select == "global":
            self._memory.put_back(state.e, s, sent, aggregate)
        # the next round's s_n, â_n and g_prev
        state.s[:, :k], state.sent[:, :k], state.back[:, :k] = s, sent, aggregate.dense[s]
        state.counts[0], state.counts[1] = k, len(aggregate.support)
        # x ← x − η g
        self._update(state.x, aggregate.dense, state.m, state.v, state.round, aggregate.support)
        return StepInfo()

    def _choose(self, a: Tensor, state: RegTopKState) -> Tensor:
        """Where the k largest scores are; a holds the scores meanwhile, where they differ from it."""
        last = slice(0, entries_sent(state.counts, len(state.x))[0])
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
        return densities(state.counts, len(state.x))
