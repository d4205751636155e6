"""Random-k with error feedback: all workers send the same entries, drawn anew every round.

Nobody needs to be told which: only the values travel, through a dense sum of k numbers. Symbols as in
`topk`; s (k,) is the same for all workers.

Stich, Cordonnier & Jaggi, "Sparsified SGD with memory", NeurIPS 2018, arXiv 1809.07599.
"""

from __future__ import annotations

from hpcopt.comm.ports import Ports
from hpcopt.config.methods.first_order import RandomKTable
from hpcopt.math.entries import Random
from hpcopt.math.flat import buffer
from hpcopt.math.topk import take
from hpcopt.methods.base import Method, StepInfo
from hpcopt.methods.parts.error_feedback import ErrorFeedback, SparseState, densities
from hpcopt.problems.base import Problem


class RandomK(Method[RandomKTable, SparseState]):
    """One allreduce of k numbers per round, no indices."""

    def start(self, problem: Problem, ports: Ports) -> SparseState:
        """See `Method`; raises `UserError` if k is larger than the number of parameters."""
        self._reduce = ports.reduce
        self._feedback = ErrorFeedback(self.settings, problem, ports.reduce, self.settings.density)
        self._random = Random(self._feedback.count, problem.share.seed)
        self._g = buffer((problem.dim,), like=problem.initial()).zero_()
        return SparseState(**self._feedback.begin())

    def step(self, state: SparseState) -> StepInfo:
        """One round: what each worker has, what it sends, what it keeps, what comes back."""
        k = self._feedback.count.at(state.round)
        if k == len(state.x):
            self._feedback.dense_round(state)
            return StepInfo()
        # a = ε + g
        a = self._feedback.accumulate(state)
        # s = k entries at random
        s = self._random(state.round).to(a.device)
        # send a on s; ε = a − s∘a
        sent = take(a, s.expand(len(a), -1))
        # g = Σ s∘a_n
        self._g.zero_()[s] = self._reduce.sum(sent)
        # x ← x − η g
        self._feedback.apply(state, self._g, s, k)
        return StepInfo()

    def metrics(self, state: SparseState) -> dict[str, float]:
        """``density`` and ``density_union``."""
        return densities(state)
