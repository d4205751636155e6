"""SGD on sparsified gradients with error feedback, and the baselines Top-k and random-k.

symbol    name       shape     meaning
x         x          (d,)      parameters, replicated
          m, v       (d,)      moments of the update rule, which is applied to the aggregate
ε_n       e          (n, d)    error memory: what worker n has not sent yet (empty if every round is dense)
          counts     (2,)      entries that each worker sent last round, and entries of their sum

Everything that belongs to worker n is kept multiplied by its weight ω_n, so that aggregates are plain sums: e
is the paper's ω_n ε_n, a its ω_n a_n. The learning rate never enters e.

Error feedback: Stich, Cordonnier & Jaggi, NeurIPS 2018. Density warm-up: Lin et al., ICLR 2018.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from hpcopt.comm.ports import Aggregate, Ports
from hpcopt.config.methods import RandomKTable, TopKTable
from hpcopt.errors import UserError
from hpcopt.math import optimizers
from hpcopt.math.flat import buffer
from hpcopt.math.streams import stream
from hpcopt.math.topk import largest, take
from hpcopt.methods.allreduce_sgd import AllreduceSGD, AllreduceSGDState
from hpcopt.methods.base import Method, StepInfo, per_worker, replicated
from hpcopt.problems.base import Draw, Problem

AUTO = (1.0, 0.1, 0.03, 0.01, 0.003, 0.001)


@dataclass
class SparsifiedState(AllreduceSGDState):
    """Parameters, moments and error memories."""

    e: Tensor = per_worker()
    counts: Tensor = replicated()


S = TypeVar("S", bound=SparsifiedState)


class Sparsified(Method[S]):
    """What all sparsifiers share: accumulate, choose, send, keep the rest, apply the sum.

    Where k = d there is nothing to choose and the round is that of `AllreduceSGD`.
    """

    def start(self, problem: Problem, ports: Ports) -> S:
        """See `Method`.

        Raises:
            UserError: k is larger than the number of parameters.
        """
        self._problem = problem
        self._sizes = list(problem.layout.sizes) if self.settings.per_layer else [problem.dim]
        if self.settings.k is not None and self.settings.k > problem.dim:
            raise UserError(
                f"[method] k = {self.settings.k}: there are {problem.dim} parameters; "
                f"allowed are 1 to {problem.dim}"
            )
        self._open(problem, ports)
        self._density = self._settled_density()
        rounds = range(self.settings.density_warmup_rounds + 1)  # k never grows
        self._most = next((k for k in map(self._k, rounds) if k < problem.dim), 0)
        self._dense = AllreduceSGD(self.settings)
        start = self._dense.start(problem, ports)
        e = buffer((problem.share.n, problem.dim if self._most else 0), like=start.x).zero_()
        return self._state(
            SparsifiedState(0, start.x, start.m, start.v, e, torch.zeros(2, dtype=torch.int64))
        )

    def step(self, state: S) -> StepInfo:
        """One round: what this worker has, what it sends, what it keeps, what comes back."""
        k = self._k(state.round)
        if k == self._problem.dim:
            state.counts.fill_(k)
            return self._dense.step(state)
        # a = ε + g
        a = state.e
        self._problem.gradients(state.x, Draw(state.round), weighted=True, out=a)
        # s = the k largest scores
        s = self._choose(state)
        # send the raw a on s; ε = a − s∘a
        sent = take(a, s)
        # g = Σ s_n∘a_n
        g = self._sum(state, s, sent)
        self._remember(state, s, sent, g)
        state.counts[0], state.counts[1] = k, len(g.support)
        # x ← x − η g
        changes = self.settings.weight_decay or self.settings.nesterov  # g, which belongs to the port
        G = g.dense.clone() if changes else g.dense
        optimizers.update(self.settings, state.x, G, state.m, state.v, state.round, g.support)
        return StepInfo()

    def metrics(self, state: S) -> dict[str, float]:
        """Last round's entries as fractions of d: those that each worker sent, and those of the sum."""
        sent, union = state.counts.tolist()
        return {"density": sent / self._problem.dim, "density_union": union / self._problem.dim}

    # --- what a sparsifier has to decide ---------------------------------------------------------------

    @abstractmethod
    def _open(self, problem: Problem, ports: Ports) -> None:
        """Opens the port that sums go through. Collective."""

    @abstractmethod
    def _state(self, common: SparsifiedState) -> S:
        """The state of round 0."""

    @abstractmethod
    def _choose(self, state: S) -> Tensor:
        """Which entries of e every worker here sends, (n, k) int64, ascending; leaves e as it was."""

    @abstractmethod
    def _sum(self, state: S, s: Tensor, sent: Tensor) -> Aggregate:
        """The sum over all workers; what it drops of ``sent`` goes back to e and becomes 0. Collective."""

    def _remember(self, state: S, s: Tensor, sent: Tensor, g: Aggregate) -> None:
        """Keeps what the next round's scores need."""

    def _affordable(self) -> float:
        raise NotImplementedError("only where density may be auto")

    # --- how many, and which ---------------------------------------------------------------------------

    def _settled_density(self) -> float:
        if self.settings.density == "auto":
            return self._affordable()
        density: float = self.settings.density or self.settings.k / self._problem.dim
        return density

    def _ks(self, round: int) -> list[int]:
        """How many entries each worker sends in a round, of all parameters or of each tensor."""
        density, warmup = self._density, self.settings.density_warmup_rounds
        if round < warmup:
            start = max(density, self.settings.density_start)
            density = start * (density / start) ** (round / warmup)
        return [max(1, round_to_int(density * size)) for size in self._sizes]

    def _k(self, round: int) -> int:
        return sum(self._ks(round))

    def _largest(self, state: S) -> Tensor:
        """The k largest entries of e, of all parameters or of each tensor."""
        chosen, start = [], 0
        for size, k in zip(self._sizes, self._ks(state.round), strict=True):
            chosen.append(largest(state.e[:, start : start + size], k) + start)
            start += size
        return torch.cat(chosen, dim=1) if len(chosen) > 1 else chosen[0]


def round_to_int(value: float) -> int:
    """The nearest integer, halves up."""
    return int(value + 0.5)


class SparselySummed(Sparsified[S]):
    """Sparsifiers whose workers choose for themselves, so that sums go through the `SparseSum` port."""

    def _open(self, problem: Problem, ports: Ports) -> None:
        self._port = ports.sparse_sum(problem.initial(), self.settings.exchange, self.settings.select)

    def _affordable(self) -> float:
        return self._port.affordable(AUTO)

    def _sum(self, state: S, s: Tensor, sent: Tensor) -> Aggregate:
        g = self._port.sum(s, sent, expected=self._previous(state)[1])
        if self.settings.select == "global":
            dropped = ~g.holds(s)
            state.e.scatter_(1, s, sent * dropped)
            sent.masked_fill_(dropped, 0)
        return g

    def _previous(self, state: S) -> tuple[int, int]:
        """The entries sent by each worker and those of the sum in the last round; 0 if it was dense."""
        sent, union = state.counts.tolist()
        return (0, 0) if sent == self._problem.dim else (sent, union)


class TopK(SparselySummed[SparsifiedState]):
    """Top-k with error feedback: score = |a|."""

    table = TopKTable

    def _state(self, common: SparsifiedState) -> SparsifiedState:
        return common

    def _choose(self, state: SparsifiedState) -> Tensor:
        return self._largest(state)


class RandomK(Sparsified[SparsifiedState]):
    """Random-k with error feedback: all workers send the same entries, drawn anew every round.

    Nobody needs to be told which: only the values travel, through a dense sum of k numbers.
    """

    table = RandomKTable

    def _open(self, problem: Problem, ports: Ports) -> None:
        self._reduce = ports.reduce
        self._g = buffer((problem.dim,), like=problem.initial()).zero_()

    def _state(self, common: SparsifiedState) -> SparsifiedState:
        return common

    def _choose(self, state: SparsifiedState) -> Tensor:
        generator = stream(self._problem.share.seed, "randomk", state.round)
        chosen, start = [], 0
        for size, k in zip(self._sizes, self._ks(state.round), strict=True):
            draw = generator.choice(size, k, replace=False, shuffle=False)
            chosen.append(torch.from_numpy(draw).sort().values + start)
            start += size
        return torch.cat(chosen).to(state.e.device).expand(len(state.e), -1)

    def _sum(self, state: SparsifiedState, s: Tensor, sent: Tensor) -> Aggregate:
        total = self._reduce.scalars(sent.clone() if self._reduce.form == "weighted" else sent.sum(0))
        self._g.zero_()[s[0]] = total
        return Aggregate(self._g, s[0])
