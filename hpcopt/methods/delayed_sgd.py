"""SGD on gradients of an earlier model: how late they are is set, or measured where every worker runs freely.

Deng, Shen, Li, Sun, Li & Tao, "Towards understanding the generalizability of delayed stochastic gradient
descent", IEEE TPAMI 47(9), 2025, arXiv 2308.09430 (the update and the schedule); Mishchenko, Bach, Even &
Woodworth, "Asynchronous SGD beats minibatch SGD under arbitrary delays", NeurIPS 2022 (rates by each
gradient's delay); Zheng et al., "Asynchronous stochastic gradient descent with delay compensation", ICML
2017.

symbol    name    shape     meaning
x_t       x       (d,)      the model at the beginning of round t, replicated; while workers run freely the
                            model as it is known here
x_{t−τ}   past    (T, d)    the last T models before it, x_s in row s mod T; T is the longest delay
          waiting (W, d)    of a trace: gradients that are not yet applied everywhere; past then has those old
                            versions of slices that are still needed. Of neighbours: models that are not yet
                            averaged everywhere
x_n       X       (n, d)    the workers' own models, where free workers average with neighbours
          made    (n,)      how many gradients each worker here has made, where they run freely
          counts  (N, B)    how many of each worker's were applied of each staleness so far; where they run
                            freely the last one counts all that is later, too
L         L       (1,)      smoothness, 0 where no rate needs it
τ_n                         the delay of worker n's gradient in rounds; where t < τ_n it is of x_0

(x is empty where X is not, and the other way round.)

Differs from the papers: staleness counts updates, and a round of a schedule in which no gradient arrives
is none: with N workers whose delay is longer than N it is therefore shorter than the delay. Free workers have
no server: each owns a slice of the model (`hpcopt.methods.parts.owners`), or a whole one that it averages
with its neighbours' (`hpcopt.methods.parts.async_mixing`). A quick worker's gradients are applied more often
than a slow one's, so that where their rows differ it is not quite Σ ω_n f_n that becomes small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.config.methods.delayed import DelayedSGDTable
from hpcopt.errors import UserError
from hpcopt.math.agreement import agreeing
from hpcopt.methods.base import Method, StepInfo
from hpcopt.methods.parts import staleness
from hpcopt.methods.parts.async_mixing import AsyncMixing, links
from hpcopt.methods.parts.delays import Arrival, Delays
from hpcopt.methods.parts.late_rates import LateRates
from hpcopt.methods.parts.mixing_replay import MixingReplay
from hpcopt.methods.parts.mixing_walk import MixingWalk
from hpcopt.methods.parts.owners import Owners
from hpcopt.methods.parts.plan import Plan
from hpcopt.methods.parts.replay import Replay
from hpcopt.methods.parts.walk import Walk
from hpcopt.problems.base import Draw, Problem
from hpcopt.state import Group, State, per_worker, replicated

BINS = 257
"""for the staleness of free workers: 0 to 255, and longer"""


@dataclass(kw_only=True)
class DelayedSGDState(State):
    """The model or models, those before it, and what was counted."""

    x: Tensor = replicated()
    past: Tensor = replicated()
    waiting: Tensor = replicated()
    X: Tensor = per_worker()
    made: Tensor = per_worker()
    counts: Tensor = replicated()
    L: Tensor = replicated()


class DelayedSGD(Method[DelayedSGDTable, DelayedSGDState]):
    """x_{t+1} = x_t − η Σ ω_n ∇f_n(x_{t−τ_n}); one allreduce of d numbers, memory for T + 1 models.

    Or, free, x ← x − η g for one gradient after the other, each of the model that its worker knew: d numbers
    to the owners of its slices and d back; or d numbers to each neighbour.
    """

    def prepare(self, problem: Problem) -> None:
        """See `Method`; raises `UserError` if delays, rule or graph do not fit the problem."""
        settings = self.settings
        self._delays = Delays(settings, problem.share.total, problem.share.seed)
        self._rates = LateRates(settings, self._delays.longest)
        self._rates.check(problem)
        self._notes: list[str] = []
        if settings.gossips:
            self.model_field = "X"
            self._mixing, note = agreeing(settings, problem)
            self._notes = [note]
        if settings.mode == "trace":
            self._plan_trace(problem)

    def _plan_trace(self, problem: Problem) -> None:
        trace, settings, N = self.files["trace"], self.settings, problem.share.total
        if trace.layout != settings.layout:
            raise UserError(
                f'layout = "{settings.layout}": {trace.path} is of free workers with '
                f'layout = "{trace.layout}"; give it, and for neighbours the topology and mixing of that run'
            )
        if settings.gossips:
            weights = [links(W) for W in self._mixing.matrices]
            graph = f'topology = "{settings.topology}", mixing = "{settings.mixing}"'
            self._averages = Plan(
                trace, N, problem.dim, 1, lambda stretch: MixingWalk(stretch, weights, graph)
            )
        else:
            self._plan = Plan(
                trace, N, problem.dim, settings.window, lambda stretch: Walk(stretch, trace.slices)
            )
            self._slices = trace.slices

    def start(self, problem: Problem, ports: Ports) -> DelayedSGDState:
        """See `Method`."""
        settings, N, d = self.settings, problem.share.total, problem.dim
        self._problem, self._reduce, self._here = problem, ports.reduce, problem.share.workers
        self._sum, self._g = ports.reduce.contribution(d), torch.empty_like(problem.initial())
        self._weights = self._all_weights() if settings.mode != "exact" else []
        x = problem.initial().clone()
        self._owners: Owners | None = None
        self._gossip: AsyncMixing | None = None
        how = BINS, settings.transport, settings.trace_out
        if settings.gossips:
            ports.agree_same(self._mixing.digest(), self._mixing.differs)
        if settings.gossips and settings.mode == "free":
            self._gossip = AsyncMixing(ports, problem.share, x, self._mixing, *how)
        elif settings.mode == "free":
            self._owners = Owners(ports, problem.share, x, *how)
        self._replay: Replay | None = None
        self._again_mixing: MixingReplay | None = None
        longest, waiting, bins = self._delays.longest, 0, self._delays.longest + 1
        if settings.measured:
            longest, bins = 0, BINS
        if settings.mode == "trace":
            plan = self._averages if settings.gossips else self._plan
            ports.agree_same(plan.digest, f"trace = {settings.trace!r}: not the same file on all ranks")
            if settings.gossips:
                self._again_mixing = MixingReplay(self._averages, self._reduce, problem.share)
                (waiting,) = self._averages.sizes
            else:
                self._replay = Replay(self._plan, self._slices, d, self._sum, self._here.start)
                longest, waiting = self._plan.sizes
        return DelayedSGDState(
            x=x[: 0 if settings.gossips else d],
            past=x.new_zeros(longest, d),
            waiting=x.new_zeros(waiting, d),
            X=problem.rows_of(d if settings.gossips else 0).copy_(x[: d if settings.gossips else 0]),
            made=torch.zeros(problem.share.n, dtype=torch.int64),
            counts=torch.zeros(N, bins, dtype=torch.int64),
            L=torch.tensor([self._rates.smoothness(problem, ports, x)], dtype=torch.float64),
        )

    def notes(self) -> list[str]:
        """The graph, if there is one."""
        return self._notes

    def step(self, state: DelayedSGDState) -> StepInfo:
        """One round."""
        if self._gossip is not None:
            return self._averaging(state, self._gossip)
        if self._owners is not None:
            return self._owning(state, self._owners)
        if self._replay is not None:
            return self._again(state, self._replay)
        if self._again_mixing is not None:
            return self._averaging_again(state, self._again_mixing)
        return self._late(state)

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
            state.x.add_(g, alpha=-self._rates.base(state.L, t))
        for one in arrivals:
            state.counts[one.worker, one.staleness] += 1
        return StepInfo()

    def _owning(self, state: DelayedSGDState, owners: Owners) -> StepInfo:
        """A window: every worker steps at its own pace until all together have made so many gradients."""
        rate = self._rates.of(state.L, state.round)
        goal, made = (state.round + 1) * self.settings.window, int(state.made.sum())
        while (agreed := owners.agree(made, goal)) is None:
            # x ← the newest slices that have come back
            owners.read(state.x)
            # g ← N ω_n ∇f_n(x; ξ), n the worker here that has made the fewest
            i = int(state.made.argmin())
            draw = int(state.made[i])
            owners.put(self._here[i], draw, self._scaled(i, state.x, draw))
            state.made[i] += 1
            made += 1
            # x_m ← x_m − η g for what has arrived for the slices m owned here
            owners.apply(state.x, state.round, rate)
        return StepInfo(wish=agreed.wish)

    def _again(self, state: DelayedSGDState, replay: Replay) -> StepInfo:
        """What free workers did in this round, by their trace."""
        for wave in replay.waves(state.round, state.x, state.past, state.waiting):
            # g ← N ω_n ∇f_n(x; ξ) of the workers here, x in the versions that each knew; everybody gets all
            here = {}
            for one in wave.gradients:
                if one.worker in self._here:
                    i = one.worker - self._here.start
                    here[one] = self._scaled(i, replay.model(one), one.draw).clone()
                    state.made[i] += 1
            replay.share(wave.gradients, here)
            # x_m ← x_m − η g for what was applied to slice m, in that order
            for event in wave.applied:
                replay.apply(event, self._rates.of(state.L, event.round))
                staleness.count_late(state.counts, event.worker, event.late, len(event.numbers))
        return StepInfo(done=replay.over(state.round))

    def _averaging(self, state: DelayedSGDState, gossip: AsyncMixing) -> StepInfo:
        """A window of workers that have models of their own."""
        rate = self._rates.of(state.L, state.round)(0)
        goal, made = (state.round + 1) * self.settings.window, int(state.made.sum())
        while (agreed := gossip.agree(made, goal)) is None:
            i = int(state.made.argmin())
            draw, x = int(state.made[i]), state.X[i]
            # x_n ← x_n − η ∇f_n(x_n; ξ), n the worker here that has made the fewest
            x.sub_(self._one(i, x, draw), alpha=rate)
            # x_n goes to its neighbours
            gossip.put(self._here[i], draw, state.round, x)
            state.made[i] += 1
            made += 1
            # x_n ← x_n + W_nm (x_m − x_n) for the models that have arrived, of all workers here
            gossip.mix(state.X, state.made)
        return StepInfo(wish=agreed.wish)

    def _averaging_again(self, state: DelayedSGDState, replay: MixingReplay) -> StepInfo:
        """What workers with models of their own did in this round, by their trace."""
        for turn in replay.turns(state.round, state.waiting):
            # x_n ← x_n − η ∇f_n(x_n; ξ) of the workers here
            for one in turn.steps:
                if one.worker in self._here:
                    i = one.worker - self._here.start
                    x = state.X[i]
                    x.sub_(self._one(i, x, one.number), alpha=self._rates.of(state.L, one.round)(0))
                    state.made[i] += 1
                for late in one.late:
                    staleness.count_late(state.counts, one.worker, late)
            # x_n ← x_n + W_nm (x_m − x_n) for the models that were averaged then, in that order
            replay.mix(state.X, turn)
        return StepInfo(done=replay.over(state.round))

    def pause(self, state: DelayedSGDState) -> None:
        """See `Method`: what is in flight is applied."""
        if self._gossip is not None:
            self._gossip.settle(state.X, state.made)
            state.counts += self._gossip.staleness.take(self._reduce)
        if self._owners is not None:
            round = max(state.round - 1, 0)  # the one that is made: the next one's rate may be 0
            self._owners.settle(state.x, round, self._rates.of(state.L, round))
            state.counts += self._owners.staleness.take(self._reduce)

    def trace(self, state: DelayedSGDState) -> dict[str, NDArray[np.int64]]:
        """See `Method`: gradients and what was applied, or which models were averaged."""
        free = self._gossip or self._owners
        return free.trace() if free is not None else {}

    def model(self, state: DelayedSGDState) -> Tensor:
        """See `Method`."""
        return state.X if self.settings.gossips else state.x

    def metrics(self, state: DelayedSGDState) -> dict[str, float]:
        """Staleness of what was applied so far: the mean, the 95th percentile and the largest.

        Where workers run freely, all that is later than 255 counts as 256.
        """
        return staleness.summary(state.counts)

    def groups(self, state: DelayedSGDState) -> dict[str, Group]:
        """``staleness``: how many gradients of each staleness were applied so far; and of each worker's.

        Where workers own slices of the model, each slice of a gradient counts; where they average with their
        neighbours, each model that is put, by how many of that worker's the receiver has not yet taken.
        """
        return staleness.groups(state.counts)

    def _one(self, i: int, x: Tensor, draw: int) -> Tensor:
        """∇f_n of worker i here on one of its mini-batches, (d,), until the next call."""
        pieces = self._problem.gradient(i, x, Draw(draw))
        for part, piece in zip(self._problem.layout.tensors(self._g), pieces, strict=True):
            part.copy_(piece)
        return self._g

    def _scaled(self, i: int, x: Tensor, draw: int) -> Tensor:
        """N ω_n of that, (d,), until the next call."""
        return self._one(i, x, draw).mul_(len(self._weights) * float(self._problem.weights[i]))

    def _gradient(self, state: DelayedSGDState, arrivals: list[Arrival]) -> Tensor:
        first, compensation = arrivals[0], self.settings.compensation
        if self.settings.mode == "exact" and not compensation and len({one.read for one in arrivals}) == 1:
            # of all workers at one model: the sum of synchronous SGD, to the bit
            g = self._reduce.gradient(self._problem, self._model(state, first.read), Draw(first.draw))
            return g.mul_(self._rates.slower(first.staleness)) if self.settings.lr_rule == "adaptive" else g
        # exact: Σ ω_n g_n; schedule: Σ N ω_n g_n, or Σ ω_n g_n / Σ ω_n
        scale = 1.0
        if self.settings.mode == "schedule":
            mean = self.settings.aggregate == "mean"
            scale = 1 / sum(self._weights[one.worker] for one in arrivals) if mean else len(self._weights)
        for one in arrivals:
            if one.worker not in self._here:
                continue
            i = one.worker - self._here.start
            weight = scale * self._rates.slower(one.staleness) * float(self._problem.weights[i])
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

    def _all_weights(self) -> list[float]:
        """ω of all N workers. Collective."""
        problem, here = self._problem, range(self._problem.share.n)
        own = problem.weights.new_zeros(len(here), problem.share.total)
        own[list(here), list(self._here)] = problem.weights
        return self._reduce.scalars(own).tolist()
