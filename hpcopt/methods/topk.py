"""Top-k with error feedback: every worker sends its largest accumulated entries and keeps the rest.

symbol    name       shape     meaning
x         x          (d,)      parameters, replicated
          m, v       (d,)      moments of the update rule, which is applied to the aggregate
ε_n       e          (n, d)    error memory: what worker n has not sent yet (empty if every round is dense)
a_n       a          (n, d)    ε_n + g_n, in the same memory
s_n       s          (n, k)    which entries worker n sends
          counts     (2,)      entries that each worker sent last round, and entries of their sum

Everything that belongs to worker n is kept multiplied by its weight ω_n, so that aggregates are plain sums: e
is the paper's ω_n ε_n, a its ω_n a_n. The learning rate never enters e. Where k = d there is nothing to
choose, and the round is that of `allreduce_sgd`.

Stich, Cordonnier & Jaggi, "Sparsified SGD with memory", NeurIPS 2018, arXiv 1809.07599.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods import TopKTable
from hpcopt.math.optimizers import FirstOrderUpdate
from hpcopt.methods.base import Method, State, StepInfo, per_worker, replicated
from hpcopt.methods.parts.sparsify import AUTO, EntryCount, ErrorMemory, Largest, densities, entries_sent
from hpcopt.problems.base import Draw, Problem


@dataclass(kw_only=True)
class TopKState(State):
    """Parameters, moments and error memories."""

    x: Tensor = replicated()
    m: Tensor = replicated()
    v: Tensor = replicated()
    e: Tensor = per_worker()
    counts: Tensor = replicated()


class TopK(Method[TopKTable, TopKState]):
    """Score = |a|; one sum of sparse vectors per round."""

    def start(self, problem: Problem, ports: Ports) -> TopKState:
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
        return TopKState(x=x, m=m, v=v, e=e, counts=torch.zeros(2, dtype=torch.int64))

    def step(self, state: TopKState) -> StepInfo:
        """One round: what each worker has, what it sends, what it keeps, what comes back."""
        k, draw = self._count.at(state.round), Draw(state.round)
        if k == self._problem.dim:
            g = self._reduce.gradient(self._problem, state.x, draw)
            self._update(state.x, g, state.m, state.v, state.round)
            state.counts.fill_(k)
            return StepInfo()
        # a = ε + g
        a = self._memory.accumulate(state.e, state.x, draw)
        # s = the k largest |a|
        s = self._largest(a, state.round)
        # send a on s; ε = a − s∘a
        sent = self._memory.take(a, s)
        # g = Σ s_n∘a_n
        aggregate = self._sparse.sum(s, sent, expected=entries_sent(state.counts, len(state.x))[1])
        if self.settings.select == "global":
            self._memory.put_back(state.e, s, sent, aggregate)
        state.counts[0], state.counts[1] = k, len(aggregate.support)
        # x ← x − η g
        self._update(state.x, aggregate.dense, state.m, state.v, state.round, aggregate.support)
        return StepInfo()

    def metrics(self, state: TopKState) -> dict[str, float]:
        """``density`` and ``density_union``."""
        return densities(state.counts, len(state.x))
