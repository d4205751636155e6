"""PowerSGD: gradients as sums of products of thin matrices, which can be added up without decompression.

Vogels, Karimireddy, Jaggi (NeurIPS 2019, arXiv 1905.13727), algorithm 1 within algorithm 2: error feedback
and one step of power iteration per round, started from the last round's factor. A parameter tensor is seen
as the matrix (shape[0], everything else); one that its factors are no shorter than is sent whole. All that
belongs to a worker carries its weight ω_n, so that sums over workers need none.

symbol  name    shape     meaning
x       x       (d,)      parameters, replicated
m, v    m, v    (d,)      first and second moments (empty where the update rule has none)
e_n     e       (n, d)    error memory: what worker n has accumulated and not sent
M_n     M       (a, b)    one parameter tensor's part of e_n, as a matrix
P̂       P       (a, r)    orthonormal columns, the same on every rank
Q       q       (Σ b·r,)  the other factors of all matrices, one after the other, replicated
Q_n     Q_n     (b, r)    M_nᵀ P̂
g       g       (d,)      P̂ Qᵀ for every matrix, the plain sum for every other tensor
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods.first_order import PowerSGDTable
from hpcopt.math.flat import aligned, buffer
from hpcopt.math.low_rank import matrix, packed
from hpcopt.math.optimizers import FirstOrderUpdate
from hpcopt.math.streams import stream
from hpcopt.methods.base import Method, StepInfo
from hpcopt.problems.base import Draw, Problem
from hpcopt.state import State, per_worker, replicated


@dataclass(kw_only=True)
class PowerSGDState(State):
    """Parameters, moments, error memories and the factors to begin the next round with."""

    x: Tensor = replicated()
    m: Tensor = replicated()
    v: Tensor = replicated()
    e: Tensor = per_worker()
    q: Tensor = replicated()


class PowerSGD(Method[PowerSGDTable, PowerSGDState]):
    """SGD, momentum or Adam on gradients of rank r, two short allreduces per round, n·d numbers of memory."""

    def start(self, problem: Problem, ports: Ports) -> PowerSGDState:
        """See `Method`."""
        self._problem, self._update = problem, FirstOrderUpdate(self.settings)
        x = problem.initial().clone()
        m, v = self._update.moments(x)
        self._first, self._second = packed(problem.layout, self.settings.rank)
        self._P = ports.reduce.contribution(self._first.dim)
        self._Q = ports.reduce.contribution(self._second.dim)
        self._g = buffer((problem.dim,), like=x)
        normal = stream(problem.share.seed, "powersgd").standard_normal(self._second.dim)
        self._q0 = torch.from_numpy(normal).to(x)
        e = buffer((problem.share.n, problem.dim), like=x).zero_()
        return PowerSGDState(x=x, m=m, v=v, e=e, q=self._q0.clone())

    def step(self, state: PowerSGDState) -> StepInfo:
        """One round."""
        # e_n ← e_n + ω_n ∇f_n(x)
        self._problem.gradients(state.x, Draw(state.round), weighted=True, out=state.e)
        # P ← Σ M_n Q; tensors that are no matrices are sent whole and leave the memory
        P = self._send(state.e, self._warm(state.q))
        # P̂ ← orthonormal columns that span P's
        P.update({name: torch.linalg.qr(P[name])[0] for name in self._second.names})
        # Q_n ← M_nᵀ P̂; e_n ← e_n - P̂ Q_nᵀ; Q ← Σ Q_n
        self._project(state.e, P, state.q)
        # g ← P̂ Qᵀ
        g = self._decompressed(P, state.q)
        # x ← x - η · update(g)
        self._update(state.x, g, state.m, state.v, state.round)
        return StepInfo()

    def _warm(self, q: Tensor) -> dict[str, Tensor]:
        """Every matrix's Q. A column of zeros could stay so for ever: it begins again with random numbers."""
        fresh = self._second.views(self._q0)
        return {name: torch.where(Q.any(0), Q, fresh[name]) for name, Q in self._second.views(q).items()}

    def _send(self, e: Tensor, Q: dict[str, Tensor]) -> dict[str, Tensor]:
        """Σ M_n Q of every matrix, Σ e_n of every other tensor, which becomes 0 in e."""
        for n, e_n in enumerate(e):
            tensors = self._problem.layout.views(e_n)
            for name, to in self._first.views(self._P.of(n)).items():
                if name in Q:
                    to += aligned(matrix(tensors[name])) @ Q[name]
                else:
                    to += tensors[name]
                    tensors[name].zero_()
        return self._first.views(self._P.sum())

    def _project(self, e: Tensor, P: dict[str, Tensor], q: Tensor) -> None:
        """q ← Σ M_nᵀ P̂ of every matrix; what was sent, P̂ Q_nᵀ, leaves e."""
        if not self._second.names:
            return
        for n, e_n in enumerate(e):
            tensors = self._problem.layout.views(e_n)
            for name, to in self._second.views(self._Q.of(n)).items():
                M = matrix(tensors[name])
                Q_n = aligned(M).T @ P[name]
                M -= P[name] @ Q_n.T
                to += Q_n
        q.copy_(self._Q.sum())

    def _decompressed(self, P: dict[str, Tensor], q: Tensor) -> Tensor:
        """P̂ Qᵀ of every matrix and the sum of every other tensor, (d,)."""
        Q = self._second.views(q)
        for name, g in self._problem.layout.views(self._g).items():
            if name in Q:
                torch.mm(P[name], Q[name].T, out=matrix(g))
            else:
                g.copy_(P[name])
        return self._g
