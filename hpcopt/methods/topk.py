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

from hpcopt.comm.ports import Ports
from hpcopt.config.methods.first_order import TopKTable
from hpcopt.math.entries import Largest
from hpcopt.math.topk import take
from hpcopt.methods.base import Method, StepInfo
from hpcopt.methods.parts.error_feedback import ErrorFeedback, SparseExchange, SparseState, densities
from hpcopt.problems.base import Problem


class TopK(Method[TopKTable, SparseState]):
    """Score = |a|; one sum of sparse vectors per round."""

    def start(self, problem: Problem, ports: Ports) -> SparseState:
        """See `Method`; raises `UserError` if k is larger than the number of parameters."""
        self._exchange = SparseExchange(self.settings, problem, ports)
        self._feedback = ErrorFeedback(self.settings, problem, ports.reduce, self._exchange.density)
        self._largest = Largest(self._feedback.count)
        return SparseState(**self._feedback.begin())

    def step(self, state: SparseState) -> StepInfo:
        """One round: what each worker has, what it sends, what it keeps, what comes back."""
        k = self._feedback.count.at(state.round)
        if k == len(state.x):
            self._feedback.dense_round(state)
            return StepInfo()
        # a = ε + g
        a = self._feedback.accumulate(state)
        # s = the k largest |a|
        s = self._largest(a, state.round)
        # send a on s; ε = a − s∘a
        sent = take(a, s)
        # g = Σ s_n∘a_n
        g = self._exchange.sum(state, s, sent)
        # x ← x − η g
        self._feedback.apply(state, g.dense, g.support, k)
        return StepInfo()

    def metrics(self, state: SparseState) -> dict[str, float]:
        """``density`` and ``density_union``."""
        return densities(state)
