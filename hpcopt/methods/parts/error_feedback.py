"""SGD on sparse gradients with error feedback: what sparsifiers hold.

Everything that belongs to worker n is kept multiplied by its weight ω_n, so that aggregates are plain sums.

Stich, Cordonnier & Jaggi, "Sparsified SGD with memory", NeurIPS 2018, arXiv 1809.07599.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hpcopt.math.entries import EntryCount
from hpcopt.math.flat import buffer
from hpcopt.math.optimizers import FirstOrderUpdate
from hpcopt.problems.base import Draw, Problem
from hpcopt.state import State, per_worker, replicated

if TYPE_CHECKING:
    from hpcopt.comm.ports import Aggregate, Ports, Reducer
    from hpcopt.config.methods.first_order import SparseSumTable, SparsifiedTable

AUTO = (1.0, 0.1, 0.03, 0.01, 0.003, 0.001)
"""densities from which "auto" chooses"""


@dataclass(kw_only=True)
class SparseState(State):
    """Parameters, moments, error memories, and how many entries were sent and are in their sum."""

    x: Tensor = replicated()
    m: Tensor = replicated()
    v: Tensor = replicated()
    e: Tensor = per_worker()
    counts: Tensor = replicated()


class ErrorFeedback:
    """The error memories ε of the workers here, and the update of the common parameters.

    Args:
        settings: how many entries are sent, and the update rule.
        problem: the workers here.
        reduce: for rounds in which everything is sent.
        density: in place of the settings', for "auto".

    Raises:
        UserError: k is larger than the number of parameters.

    Attributes:
        count: k of every round.
    """

    def __init__(
        self, settings: SparsifiedTable, problem: Problem, reduce: Reducer, density: float | None
    ) -> None:
        self.count = EntryCount(settings, problem.layout, density)
        self._problem, self._reduce, self._update = problem, reduce, FirstOrderUpdate(settings)

    def begin(self) -> dict[str, Any]:
        """The tensors of a `SparseState` of round 0; no memory where every round is dense."""
        x = self._problem.initial().clone()
        m, v = self._update.moments(x)
        e = buffer((self._problem.share.n, len(x) if self.count.most else 0), like=x).zero_()
        return {"x": x, "m": m, "v": v, "e": e, "counts": torch.zeros(2, dtype=torch.int64)}

    def dense_round(self, state: SparseState) -> None:
        """The round of `allreduce_sgd`, where there is nothing to choose."""
        g = self._reduce.gradient(self._problem, state.x, Draw(state.round))
        self._update(state.x, g, state.m, state.v, state.round)
        state.counts.fill_(len(state.x))

    def accumulate(self, state: SparseState) -> Tensor:
        """a = ε + g: e itself, (n, d), to which ω_n ∇f_n(x) was added."""
        return self._problem.gradients(state.x, Draw(state.round), weighted=True, out=state.e)

    def apply(self, state: SparseState, g: Tensor, support: Tensor, sent: int) -> None:
        """x ← x − η g, g (d,) being zero outside of the support; ``sent``: entries that each worker sent."""
        self._update(state.x, g, state.m, state.v, state.round, support)
        state.counts[0], state.counts[1] = sent, len(support)


class SparseExchange:
    """Sums of what workers chose for themselves.

    Args:
        settings: the exchange, and whether entries of the sum are selected again.
        problem, ports: of the run.

    Attributes:
        density: the settings', or what "auto" comes to.
    """

    def __init__(self, settings: SparseSumTable, problem: Problem, ports: Ports) -> None:
        self._selects = settings.select == "global"
        self._port = ports.sparse_sum(problem.initial(), settings.exchange, settings.select)
        self.density = self._port.affordable(AUTO) if settings.density == "auto" else settings.density

    def sum(self, state: SparseState, s: Tensor, sent: Tensor) -> Aggregate:
        """Σ_n sent_n on s_n, (n, k) both. What a global selection drops goes back to ε, and is 0 in sent."""
        g = self._port.sum(s, sent, expected=last_sent(state)[1])
        if self._selects:
            dropped = ~g.holds(s)
            state.e.scatter_(1, s, sent * dropped)
            sent.masked_fill_(dropped, 0)
        return g


def last_sent(state: SparseState) -> tuple[int, int]:
    """Entries that each worker sent last round and entries of their sum; (0, 0) if it was dense."""
    sent, union = state.counts.tolist()
    return (0, 0) if sent == len(state.x) else (sent, union)


def densities(state: SparseState) -> dict[str, float]:
    """Last round's entries as fractions of d: those that each worker sent, and those of the sum."""
    sent, union = state.counts.tolist()
    return {"density": sent / len(state.x), "density_union": union / len(state.x)}
