"""Random-k with error feedback: all workers send the same entries, drawn anew every round.

Nobody needs to be told which: only the values travel, through a dense sum of k numbers. Symbols as in
`topk`; s (k,) is the same for all workers.

Stich, Cordonnier & Jaggi, "Sparsified SGD with memory", NeurIPS 2018, arXiv 1809.07599.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods import RandomKTable
from hpcopt.math.flat import buffer
from hpcopt.math.optimizers import FirstOrderUpdate
from hpcopt.math.streams import stream
from hpcopt.methods.base import Method, State, StepInfo, per_worker, replicated
from hpcopt.methods.parts.sparsify import EntryCount, ErrorMemory, densities
from hpcopt.problems.base import Draw, Problem


@dataclass(kw_only=True)
class RandomKState(State):
    """Parameters, moments and error memories."""

    x: Tensor = replicated()
    m: Tensor = replicated()
    v: Tensor = replicated()
    e: Tensor = per_worker()
    counts: Tensor = replicated()


class RandomK(Method[RandomKTable, RandomKState]):
    """One allreduce of k numbers per round, no indices."""

    def start(self, problem: Problem, ports: Ports) -> RandomKState:
        """See `Method`.

        Raises:
            UserError: k is larger than the number of parameters.
        """
        self._problem, self._reduce = problem, ports.reduce
        self._count = EntryCount(self.settings, problem.layout, self.settings.density)
        self._memory, self._update = ErrorMemory(problem), FirstOrderUpdate(self.settings)
        x = problem.initial().clone()
        m, v = self._update.moments(x)
        e = self._memory.empty(problem.dim if self._count.most else 0)
        self._g = buffer((problem.dim,), like=x).zero_()
        return RandomKState(x=x, m=m, v=v, e=e, counts=torch.zeros(2, dtype=torch.int64))

    def step(self, state: RandomKState) -> StepInfo:
        """One round: what each worker has, what it sends, what it keeps, what comes back."""
        k, draw = self._count.at(state.round), Draw(state.round)
        if k == self._problem.dim:
            g = self._reduce.gradient(self._problem, state.x, draw)
            self._update(state.x, g, state.m, state.v, state.round)
            state.counts.fill_(k)
            return StepInfo()
        # a = ε + g
        a = self._memory.accumulate(state.e, state.x, draw)
        # s = k entries at random
        s = self._draw(state.round).to(a.device)
        # send a on s; ε = a − s∘a
        sent = self._memory.take(a, s.expand(len(a), -1))
        # g = Σ s∘a_n
        self._g.zero_()[s] = self._reduce.sum(sent)
        state.counts.fill_(k)
        # x ← x − η g
        self._update(state.x, self._g, state.m, state.v, state.round, s)
        return StepInfo()

    def _draw(self, round: int) -> Tensor:
        """k entries of all parameters, or of each tensor, (k,) int64, ascending."""
        generator = stream(self._problem.share.seed, "randomk", round)
        chosen, start = [], 0
        for size, k in zip(self._count.sizes, self._count.parts(round), strict=True):
            draw = generator.choice(size, k, replace=False, shuffle=False)
            chosen.append(torch.from_numpy(draw).sort().values + start)
            start += size
        return torch.cat(chosen)

    def metrics(self, state: RandomKState) -> dict[str, float]:
        """``density`` and ``density_union``."""
        return densities(state.counts, len(state.x))
