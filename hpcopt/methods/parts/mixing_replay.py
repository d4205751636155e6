"""A run of free workers that average with their neighbours, made again to the bit on any number of ranks.

All ranks go through the trace together. A worker's steps are made where it is; a model that anybody averages
reaches all ranks, which keep it until nobody needs it any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.math.optimizers import FirstOrderUpdate
from hpcopt.methods.base import StepInfo
from hpcopt.methods.parts.clock import Clock, DelayedSGDState, Due, Flat, Sizes
from hpcopt.methods.parts.free import BINS
from hpcopt.methods.parts.late_rates import LateRates
from hpcopt.methods.parts.mixing_walk import MixingWalk, Wave
from hpcopt.methods.parts.plan import Plan
from hpcopt.methods.parts.staleness import count_late
from hpcopt.problems.base import Problem

if TYPE_CHECKING:
    from hpcopt.config.methods.delayed import DelayedSGDTable


class MixingReplay(Clock):
    """Makes a run again. `apply` is collective, nothing else.

    Args:
        settings: the update.
        problem: the workers here.
        rates: η.
        plan: of the trace.
        ports: of the run.
    """

    def __init__(
        self,
        settings: DelayedSGDTable,
        problem: Problem,
        rates: LateRates,
        plan: Plan[MixingWalk],
        ports: Ports,
    ) -> None:
        ports.agree_same(plan.digest, plan.differs)
        self._share, self._rates, self._plan, self._reduce = problem.share, rates, plan, ports.reduce
        self._update, self._flat = FirstOrderUpdate(settings, clip=0), Flat(problem, settings.clip)
        (waiting,) = plan.sizes
        self.sizes = Sizes(0, waiting, BINS)
        self._wave = Wave()
        self._models: dict[tuple[int, int], Tensor] = {}

    def turns(self, state: DelayedSGDState) -> Iterator[Iterable[Due]]:
        """See `Clock`: a step of each worker at most, of its own model."""
        start, waiting = self._share.workers.start, state.waiting
        if state.round < self._plan.rounds:
            walk, fresh = self._plan.at(state.round)
            if fresh:
                self._models = {one: waiting[k].clone() for k, one in enumerate(sorted(walk.kept))}
            for self._wave in walk.waves(state.round):
                here = [one for one in self._wave.steps if one.worker in self._share.workers]
                yield [Due(one.worker - start, state.X[one.worker - start], one.number, one) for one in here]
                for spent in self._wave.spent:
                    del self._models[spent]
            for k, one in enumerate(sorted(walk.kept)):
                waiting[k] = self._models[one]
        self.info = StepInfo(done=state.round + 1 >= self._plan.rounds)

    def put(self, state: DelayedSGDState, due: Due, gradient: Sequence[Tensor]) -> None:
        """See `Clock`: x_n ← x_n − η update(∇f_n(x_n; ξ))."""
        moments, rate = ([state.M[due.i]], [state.V[due.i]]), self._rates.of(state.L, due.event.round)(0)
        self._update.step([due.x], [self._flat.of(gradient)], *moments, due.draw + 1, rate)
        state.made[due.i] += 1

    def apply(self, state: DelayedSGDState) -> None:
        """See `Clock`: x_n ← x_n + W_nm (x_m − x_n) for what was averaged, in that order. Collective.

        Models that anybody averages reach all ranks.
        """
        N, d, wave, here = self._share.total, state.X.shape[1], self._wave, self._share.workers
        if wave.taken:
            every = self._reduce.allgather(state.X.flatten(), N * d, by_worker=True).reshape(N, d)
            self._models |= {(n, number): every[n].clone() for n, number in wave.taken}
        for one in wave.averaged:
            if one.worker in here:
                model = self._models[one.neighbour, one.step]
                state.X[one.worker - here.start].lerp_(model, one.weight)
        for step in wave.steps:
            for late in step.late:
                count_late(state.counts, step.worker, late)
