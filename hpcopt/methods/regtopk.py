"""RegTop-k: Top-k whose scores count how much of what was sent survived aggregation.

Bereyhi, Liang, Boudreau & Afana, "Regularized Top-k: A Bayesian Framework for Gradient Sparsification",
arXiv 2501.05633; first version MLSP 2024, arXiv 2409.14893.

symbol    name    shape     meaning
x, ε_n              see `hpcopt.methods.sparsified`
s_n       s       (n, k)    which entries worker n sent last round
ω_n â_n   sent    (n, k)    what it sent there
g_prev    back    (n, k)    the aggregate there

k here is the most entries that a worker sends in any round; there is no more communication than with Top-k.

Differs from the paper: scores are divided by the constant tanh(Q/μ), so that entries that were not sent keep
the score |a|; where nothing was sent (â = 0) the score is |a| too. An entry that a global selection dropped
counts as not sent. After a round with k = d nothing is remembered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.comm.ports import Aggregate
from hpcopt.config.methods import RegTopKTable
from hpcopt.math.topk import survival
from hpcopt.methods.base import per_worker
from hpcopt.methods.sparsified import SparselySummed, SparsifiedState


@dataclass
class RegTopKState(SparsifiedState):
    """With last round's masks, what was sent on them, and what came back."""

    s: Tensor = per_worker()
    sent: Tensor = per_worker()
    back: Tensor = per_worker()


class RegTopK(SparselySummed[RegTopKState]):
    """`Sparsified`, with score = |a| · tanh(|1 + Δ|/μ)."""

    table = RegTopKTable

    def _state(self, common: SparsifiedState) -> RegTopKState:
        shape = (len(common.e), self._most)
        s = torch.zeros(shape, dtype=torch.int64, device=common.e.device)
        return RegTopKState(
            0,
            common.x,
            common.m,
            common.v,
            common.e,
            common.counts,
            s,
            common.e.new_zeros(shape),
            common.e.new_zeros(shape),
        )

    def _choose(self, state: RegTopKState) -> Tensor:
        """The k largest scores; a is changed to the scores where they differ, and changed back."""
        last = slice(0, self._previous(state)[0])
        s, sent, back = state.s[:, last], state.sent[:, last], state.back[:, last]
        a = state.e.gather(1, s)
        # Δ = (g_prev − ω_n â) / (ω_n â) on the entries this worker sent last round, or over ω_n a
        over = a if self.settings.denominator == "accumulated" else None
        # score = |a| · tanh(|1 + Δ| / μ)
        state.e.scatter_(1, s, a * survival(sent, back, self.settings.mu, over))
        chosen = self._largest(state)
        state.e.scatter_(1, s, a)
        return chosen

    def _remember(self, state: RegTopKState, s: Tensor, sent: Tensor, g: Aggregate) -> None:
        now = slice(0, s.shape[1])
        state.s[:, now], state.sent[:, now], state.back[:, now] = s, sent, g.dense[s]
