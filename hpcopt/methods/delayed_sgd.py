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
m, v      m, v    (d,)      first and second moments (empty where the update has none)
          updates (N,)      how many each slice of the model has had, or the whole one (empty for sgd)
x_n       X       (n, d)    the workers' own models, where free workers average with neighbours
          M, V    (n, d)    their moments
          made    (n,)      how many gradients each worker here has made, where they run freely
          counts  (N, B)    how many of each worker's were applied of each staleness so far; where they run
                            freely the last one counts all that is later, too
L         L       (1,)      smoothness, 0 where no rate needs it
τ_n                         the delay of worker n's gradient in rounds; where t < τ_n it is of x_0

(x, m and v are empty where X, M and V are not, and the other way round.)

Differs from the papers: staleness counts updates, and a round of a schedule in which no gradient arrives
is none: with N workers whose delay is longer than N it is therefore shorter than the delay. Free workers have
no server: each owns a slice of the model (`hpcopt.methods.parts.owners`), or a whole one that it averages
with its neighbours' (`hpcopt.methods.parts.async_mixing`). A quick worker's gradients are applied more often
than a slow one's, so that where their rows differ it is not quite Σ ω_n f_n that becomes small. A late
gradient may take any first-order step in place of η g: moments are those of the sums that arrive, of what an
owner applies to its slice, or of a worker's own gradients; they count updates, not rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from hpcopt.comm.ports import Ports
from hpcopt.config.methods.delayed import DelayedSGDTable
from hpcopt.errors import UserError
from hpcopt.math.agreement import agreeing
from hpcopt.math.optimizers import FirstOrderUpdate
from hpcopt.methods.base import Method, StepInfo
from hpcopt.methods.parts import staleness
from hpcopt.methods.parts.async_mixing import AsyncMixing
from hpcopt.methods.parts.clock import Clock, DelayedSGDState
from hpcopt.methods.parts.delays import Delays
from hpcopt.methods.parts.late_rates import LateRates
from hpcopt.methods.parts.late_sums import LateSums
from hpcopt.methods.parts.mixing_replay import MixingReplay
from hpcopt.methods.parts.mixing_walk import MixingWalk
from hpcopt.methods.parts.owners import Owners
from hpcopt.methods.parts.plan import Plan
from hpcopt.methods.parts.replay import Replay
from hpcopt.methods.parts.walk import Walk
from hpcopt.problems.base import Draw, Problem
from hpcopt.state import Group

if TYPE_CHECKING:
    from hpcopt.storage.trace import Trace


class DelayedSGD(Method[DelayedSGDTable, DelayedSGDState]):
    """x_{t+1} = x_t − η Σ ω_n ∇f_n(x_{t−τ_n}); one allreduce of d numbers, memory for T + 1 models.

    Or, free, x ← x − η g for one gradient after the other, each of the model that its worker knew: d numbers
    to the owners of its slices and d back; or d numbers to each neighbour.
    """

    def prepare(self, problem: Problem) -> None:
        """See `Method`; raises `UserError` if delays, rule, graph or trace do not fit the problem."""
        self._notes: list[str] = []
        self._rates = LateRates(self.settings)
        self._rates.check(problem)
        if self.settings.gossips:
            self.model_field = "X"
            self._open = self._neighbours(problem)
        else:
            self._open = self._one_model(problem)

    def start(self, problem: Problem, ports: Ports) -> DelayedSGDState:
        """See `Method`."""
        x, d, own = problem.initial().clone(), problem.dim, problem.dim * self.settings.gossips
        self._problem, self._clock = problem, self._open(ports)
        past, waiting, bins = self._clock.sizes
        first, second = FirstOrderUpdate(self.settings).sizes(d)
        return DelayedSGDState(
            x=x[: d - own],
            past=x.new_zeros(past, d),
            waiting=x.new_zeros(waiting, d),
            m=x.new_zeros(min(first, d - own)),
            v=x.new_zeros(min(second, d - own)),
            updates=torch.zeros(problem.share.total if second else 0, dtype=torch.int64),
            X=problem.rows_of(own).copy_(x[:own]),
            M=problem.rows_of(min(first, own)).zero_(),
            V=problem.rows_of(min(second, own)).zero_(),
            made=torch.zeros(problem.share.n, dtype=torch.int64),
            counts=torch.zeros(problem.share.total, bins, dtype=torch.int64),
            L=torch.tensor([self._rates.smoothness(problem, ports, x)], dtype=torch.float64),
        )

    def notes(self) -> list[str]:
        """The graph, if there is one."""
        return self._notes

    def step(self, state: DelayedSGDState) -> StepInfo:
        """One round; whose turn it is, and how gradients travel, is the clock's."""
        for turn in self._clock.turns(state):
            # g ← ∇f_n(x; ξ) for the workers n here whose turn it is, x the old model that n knows
            for one in turn:
                g = self._problem.gradient(one.i, one.x, Draw(one.draw))
                # g goes to where it will be applied, and may take its time
                self._clock.put(state, one, g)
            # x ← x − η · update(g) for those that have arrived
            self._clock.apply(state)
        return self._clock.info

    def pause(self, state: DelayedSGDState) -> None:
        """See `Method`: what is in flight is applied."""
        self._clock.settle(state)

    def trace(self, state: DelayedSGDState) -> dict[str, NDArray[np.int64]]:
        """See `Method`: gradients and what was applied, or which models were averaged."""
        return self._clock.trace()

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

    def _one_model(self, problem: Problem) -> Callable[[Ports], Clock]:
        """What opens the clock of the settings, where there is one model for all."""
        settings, rates, N = self.settings, self._rates, problem.share.total
        if settings.mode == "free":
            return lambda ports: Owners(settings, problem, rates, ports)
        if settings.mode == "trace":
            trace = self._trace()
            walk = partial(Walk, slices=trace.slices)
            plan = Plan(trace, N, problem.dim, settings.window, walk)
            return lambda ports: Replay(settings, problem, rates, plan, trace.slices, ports)
        delays = Delays(settings, N, problem.share.seed)
        return lambda ports: LateSums(settings, problem, rates, delays, ports)

    def _neighbours(self, problem: Problem) -> Callable[[Ports], Clock]:
        """The same where every worker has a model of its own."""
        settings, rates = self.settings, self._rates
        mixing, note = agreeing(settings, problem)
        self._notes = [note]
        if settings.mode == "free":
            return lambda ports: AsyncMixing(settings, problem, rates, mixing, ports)
        plan = Plan(self._trace(), mixing.N, problem.dim, settings.window, partial(MixingWalk, mixing=mixing))
        return lambda ports: MixingReplay(settings, problem, rates, plan, ports)

    def _trace(self) -> Trace:
        trace: Trace = self.files["trace"]
        if trace.layout != self.settings.layout:
            raise UserError(
                f'layout = "{self.settings.layout}": {trace.path} is of free workers with layout = '
                f'"{trace.layout}"; give it, and for neighbours the topology and mixing of that run'
            )
        return trace
