"""SGD on gradients of an earlier model: how late they are is set, or measured where every worker runs freely.

Deng, Shen, Li, Sun, Li & Tao, "Towards understanding the generalizability of delayed stochastic gradient
descent", IEEE TPAMI 47(9), 2025, arXiv 2308.09430 (the update and the schedule); Mishchenko, Bach, Even &
Woodworth, "Asynchronous SGD beats minibatch SGD under arbitrary delays", NeurIPS 2022 (rates by each
gradient's delay); Zheng et al., "Asynchronous stochastic gradient descent with delay compensation", ICML
2017.

symbol    name    shape     meaning
x_t       x       (d,)      the model at the beginning of round t, replicated
x_{t−τ}   past    (T, d)    the last T models before it, x_s in row s mod T; T is the longest delay
          counts  (N, T+1)  how many gradients of each worker were applied of each staleness so far
L         L       (1,)      smoothness, 0 where no rate needs it
τ_n                         the delay of worker n's gradient in rounds; where t < τ_n it is of x_0

Differs from the papers: staleness counts updates, and a round of a schedule in which no gradient arrives
is none: with N workers whose delay is longer than N it is therefore shorter than the delay. Where workers run
freely there is no server: every worker owns a slice of the model (`hpcopt.methods.parts.owners`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods.delayed import DelayedSGDTable
from hpcopt.math.lanczos import lanczos, random_start
from hpcopt.math.optimizers import learning_rate
from hpcopt.methods.base import Method, StepInfo
from hpcopt.methods.parts.delays import Arrival, Delays
from hpcopt.methods.parts.hessian import check_hessian, hessian_products
from hpcopt.methods.parts.owners import Owners, Rate
from hpcopt.problems.base import Draw, Problem
from hpcopt.state import Group, State, per_worker, replicated

PRODUCTS = 20
"""with the Hessian, for L"""
BINS = 257
"""for the staleness of free workers: 0 to 255, and longer"""


@dataclass(kw_only=True)
class DelayedSGDState(State):
    """The model, those before it, and what was counted."""

    x: Tensor = replicated()
    past: Tensor = replicated()
    counts: Tensor = replicated()
    made: Tensor = per_worker()
    L: Tensor = replicated()


class DelayedSGD(Method[DelayedSGDTable, DelayedSGDState]):
    """x_{t+1} = x_t − η Σ ω_n ∇f_n(x_{t−τ_n}); one allreduce of d numbers, memory for T + 1 models.

    Or, free: x ← x − η g for one gradient after the other, each of the model that its worker knew; d numbers
    to the owners and d back for each.
    """

    def prepare(self, problem: Problem) -> None:
        """See `Method`; raises `UserError` if the delays do not fit or L cannot be computed."""
        self._delays = Delays(self.settings, problem.share.total, problem.share.seed)
        if self.settings.lr_rule != "constant" and self.settings.smoothness is None:
            check_hessian(problem, None)

    def start(self, problem: Problem, ports: Ports) -> DelayedSGDState:
        """See `Method`."""
        self._problem, self._reduce = problem, ports.reduce
        self._here, self._sum = problem.share.workers, ports.reduce.contribution(problem.dim)
        self._weights = self._all_weights() if self.settings.mode != "exact" else []
        x = problem.initial().clone()
        longest, bins, free = self._delays.longest, self._delays.longest + 1, self.settings.mode == "free"
        if free:
            longest, bins = 0, BINS
            self._g = torch.empty_like(x)
        how = self.settings.transport, self.settings.trace_out
        self._owners = Owners(ports, problem.share, x, bins, *how) if free else None
        return DelayedSGDState(
            x=x,
            past=x.new_zeros(longest, len(x)),
            counts=torch.zeros(problem.share.total, bins, dtype=torch.int64),
            made=torch.zeros(problem.share.n, dtype=torch.int64),
            L=torch.tensor([self._smoothness(x)], dtype=torch.float64),
        )

    def step(self, state: DelayedSGDState) -> StepInfo:
        """One round."""
        return self._late(state) if self._owners is None else self._free(state, self._owners)

    def _late(self, state: DelayedSGDState) -> StepInfo:
        """One update with the gradients that arrive by the clock of the settings."""
        t, arrivals = state.round, self._delays.at(state.round)
        # g ← Σ ω_n ∇f_n(x_{t−τ_n}) over those that arrive
        g = self._gradient(state, arrivals) if arrivals else None
        # x_t is kept for as long as anybody may be late
        if len(state.past):
            state.past[t % len(state.past)] = state.x
        # x_{t+1} ← x_t − η g
        if g is not None:
            state.x.add_(g, alpha=-self._rate(state))
        for one in arrivals:
            state.counts[one.worker, one.staleness] += 1
        return StepInfo()

    def _free(self, state: DelayedSGDState, owners: Owners) -> StepInfo:
        """A window: every worker steps at its own pace until all together have made so many gradients."""
        goal, agreed = (state.round + 1) * self.settings.window, None
        while agreed is None:
            # x ← the newest slices that have come back
            owners.read(state.x)
            # g ← N ω_n ∇f_n(x; ξ), n the worker here that has made the fewest
            i = int(state.made.argmin())
            owners.put(self._here[i], int(state.made[i]), self._one(i, state))
            state.made[i] += 1
            # x_m ← x_m − η g for what has arrived for the slices m owned here
            owners.apply(state.x, state.round, self._rates(state))
            agreed = owners.agree(int(state.made.sum()), goal)
        return StepInfo(wish=agreed.wish)

    def pause(self, state: DelayedSGDState) -> None:
        """See `Method`: what is in flight is applied."""
        if self._owners is not None:
            state.counts += self._owners.settle(state.x, state.round, self._rates(state))

    def trace(self, state: DelayedSGDState) -> dict[str, NDArray[np.int64]]:
        """See `Method`: gradients and what was applied, see `hpcopt.methods.parts.owners.Log`."""
        return {} if self._owners is None else self._owners.trace()

    def metrics(self, state: DelayedSGDState) -> dict[str, float]:
        """Staleness of the gradients applied so far: the mean, the 95th percentile and the largest."""
        counts = state.counts.sum(0).numpy()
        total, delays = counts.sum(), np.arange(len(counts))
        if not total:
            return {"staleness_mean": 0.0, "staleness_p95": 0.0, "staleness_max": 0.0}
        return {
            "staleness_mean": float(counts @ delays / total),
            "staleness_p95": float(np.argmax(np.cumsum(counts) >= 0.95 * total)),
            "staleness_max": float(np.flatnonzero(counts)[-1]),
        }

    def groups(self, state: DelayedSGDState) -> dict[str, Group]:
        """``staleness``: how many gradients of each staleness were applied so far; and of each worker's."""
        counts = state.counts.numpy()
        every = Group(("delay",), {"count": counts.sum(0)}, capacity=counts.shape[1])
        each = Group(("delay", "origin"), {"count": counts.T.copy()}, capacity=counts.shape[1])
        return {"staleness": every, "staleness_by_worker": each}

    def _one(self, i: int, state: DelayedSGDState) -> Tensor:
        """N ω_n ∇f_n of worker i here at the model that it knows, on its next mini-batch, (d,)."""
        g, scale = self._g, len(self._weights) * float(self._problem.weights[i])
        pieces = self._problem.gradient(i, state.x, Draw(int(state.made[i])))
        for part, piece in zip(self._problem.layout.tensors(g), pieces, strict=True):
            torch.mul(piece, scale, out=part)
        return g

    def _gradient(self, state: DelayedSGDState, arrivals: list[Arrival]) -> Tensor:
        first, compensation = arrivals[0], self.settings.compensation
        if self.settings.mode == "exact" and not compensation and len({one.read for one in arrivals}) == 1:
            # of all workers at one model: the sum of synchronous SGD, to the bit
            g = self._reduce.gradient(self._problem, self._model(state, first.read), Draw(first.draw))
            return g.mul_(self._slower(first.staleness)) if self.settings.lr_rule == "adaptive" else g
        # exact: Σ ω_n g_n; schedule: Σ N ω_n g_n, or Σ ω_n g_n / Σ ω_n
        scale = 1.0
        if self.settings.mode == "schedule":
            mean = self.settings.aggregate == "mean"
            scale = 1 / sum(self._weights[one.worker] for one in arrivals) if mean else len(self._weights)
        for one in arrivals:
            if one.worker not in self._here:
                continue
            i = one.worker - self._here.start
            weight = scale * self._slower(one.staleness) * float(self._problem.weights[i])
            old = self._model(state, one.read)
            gradient = self._problem.gradient(i, old, Draw(one.draw))
            parts = self._problem.layout.tensors(self._sum.of(i))
            # λ g∘g∘(x_t − x_{t−τ})
            moved = self._problem.layout.tensors(state.x - old) if compensation else parts
            for part, piece, difference in zip(parts, gradient, moved, strict=True):
                if compensation:
                    piece = piece + compensation * piece * piece * difference
                part.add_(piece, alpha=weight)
        return self._sum.sum()

    def _model(self, state: DelayedSGDState, read: int) -> Tensor:
        """x_read, (d,)."""
        return state.x if read == state.round else state.past[read % len(state.past)]

    def _slower(self, staleness: float) -> float:
        """By which the rate of one gradient is multiplied."""
        return 1 / (staleness + 1) if self.settings.lr_rule == "adaptive" else 1.0

    def _rates(self, state: DelayedSGDState) -> Rate:
        """η of a staleness."""
        rate = self._rate(state)
        return lambda staleness: rate * self._slower(staleness)

    def _rate(self, state: DelayedSGDState) -> float:
        """η, but for what depends on the single gradient."""
        settings, lr = self.settings, self.settings.lr
        if settings.lr_rule != "constant":
            lr = settings.lr_factor / float(state.L)
        if settings.lr_rule == "stability":
            lr /= self._delays.longest + 1
        return learning_rate(settings, state.round, lr)

    def _all_weights(self) -> list[float]:
        """ω of all N workers. Collective."""
        problem, here = self._problem, range(self._problem.share.n)
        own = problem.weights.new_zeros(len(here), problem.share.total)
        own[list(here), list(self._here)] = problem.weights
        return self._reduce.scalars(own).tolist()

    def _smoothness(self, x: Tensor) -> float:
        """L: given, or the largest eigenvalue of the Hessian at x; 0 where it is not needed. Collective."""
        if self.settings.lr_rule == "constant":
            return 0.0
        if self.settings.smoothness is not None:
            return self.settings.smoothness
        problem, own = self._problem, self._reduce.own(len(x))
        products = hessian_products(problem, self._reduce, self._sum, x, None)
        start = random_start(own, problem.share.seed, x.dtype, x.device)[:, None]
        steps = min(PRODUCTS, len(x))
        found = lanczos(products, self._reduce.slices, start, len(x), own, largest=1, iterations=steps)
        return float(found.values[-1])
