"""A run of free workers made again from its trace, to the bit and on any number of ranks.

All ranks go through the trace together. Every gradient is computed where its worker is and reaches all; the
model, those older versions of its slices that gradients to come are of, and the gradients that are not
applied everywhere yet are the same on all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.ground.placement import block
from hpcopt.math.optimizers import FirstOrderUpdate
from hpcopt.methods.base import StepInfo
from hpcopt.methods.parts.clock import Clock, DelayedSGDState, Due, Flat, Sizes
from hpcopt.methods.parts.free import BINS
from hpcopt.methods.parts.late_rates import LateRates, Rate
from hpcopt.methods.parts.owners import Slice
from hpcopt.methods.parts.plan import Plan
from hpcopt.methods.parts.staleness import count_late
from hpcopt.methods.parts.walk import Applied, Made, Walk, Wave
from hpcopt.problems.base import Problem

if TYPE_CHECKING:
    from hpcopt.config.methods.delayed import DelayedSGDTable


class Replay(Clock):
    """Makes a run again. `apply` is collective, nothing else.

    Args:
        settings: the update.
        problem: the workers here.
        rates: η.
        plan: of the trace.
        slices: S, of the model.
        ports: of the run.
    """

    def __init__(
        self,
        settings: DelayedSGDTable,
        problem: Problem,
        rates: LateRates,
        plan: Plan[Walk],
        slices: int,
        ports: Ports,
    ) -> None:
        ports.agree_same(plan.digest, plan.differs)
        self._rates, self._plan, self._here = rates, plan, problem.share.workers
        self._update, self._flat = FirstOrderUpdate(settings, clip=0), Flat(problem, settings.clip)
        self._sum = ports.reduce.contribution(problem.dim)
        parts = [block(problem.dim, slices, m) for m in range(slices)]
        self._parts = [slice(part.start, part.stop) for part in parts]
        past, waiting = plan.sizes
        self.sizes = Sizes(past, waiting, BINS)
        self._wave = Wave()
        self._own: dict[Made, Tensor] = {}
        # what is known of every slice, by version, and gradients by worker and number
        self._slices: list[dict[int, Tensor]] = []
        self._owned: list[Slice] = []
        self._gradients: dict[tuple[int, int], Tensor] = {}

    def turns(self, state: DelayedSGDState) -> Iterator[Iterable[Due]]:
        """See `Clock`: gradients that can be made at once, of the versions that each knew."""
        if state.round < self._plan.rounds:
            walk, fresh = self._plan.at(state.round)
            if fresh:
                self._take_up(walk, state)
            for self._wave in walk.waves(state.round):
                yield (self._due(one, state) for one in self._wave.gradients if one.worker in self._here)
                for m, version in self._wave.old:
                    del self._slices[m][version]
                for one in self._wave.spent:
                    del self._gradients[one]
            self._hand_over(walk, state)
        self.info = StepInfo(done=state.round + 1 >= self._plan.rounds)

    def put(self, state: DelayedSGDState, due: Due, gradient: Sequence[Tensor]) -> None:
        """See `Clock`: kept until it reaches all ranks."""
        self._own[due.event] = self._flat.scaled(due.i, gradient).clone()

    def apply(self, state: DelayedSGDState) -> None:
        """See `Clock`: x_m ← x_m − η(τ) update(g) for what was applied to slices m, in order. Collective."""
        for one in self._wave.gradients:
            if one in self._own:
                self._sum.add(one.worker - self._here.start, self._own.pop(one))
            self._gradients[one.worker, one.number] = self._sum.sum().clone()
        for event in self._wave.applied:
            self._apply(event, self._rates.of(state.L, event.round))
            count_late(state.counts, event.worker, event.late, len(event.numbers))

    def _due(self, one: Made, state: DelayedSGDState) -> Due:
        i = one.worker - self._here.start
        state.made[i] += 1
        x = torch.cat([known[version] for known, version in zip(self._slices, one.versions, strict=True)])
        return Due(i, x, one.draw, one)

    def _apply(self, one: Applied, rate: Rate) -> None:
        """As `hpcopt.methods.parts.owners.Owners` did."""
        first, *others = [self._gradients[one.worker, number][self._parts[one.to]] for number in one.numbers]
        g = first.clone() if others else first
        for other in others:
            g.add_(other)
        known, own = self._slices[one.to], self._owned[one.to]
        own.x = known[one.version].clone()
        own.apply(self._update, g, rate(one.late))
        known[one.version + len(one.numbers)] = own.x

    def _take_up(self, walk: Walk, state: DelayedSGDState) -> None:
        """The rows of past are a slice's old versions, those of waiting the gradients, in ascending order."""
        self._slices = []
        for part, known in zip(self._parts, walk.versions, strict=True):
            rows = [*state.past[: len(known) - 1, part], state.x[part]]
            self._slices.append({version: row.clone() for version, row in zip(known, rows, strict=True)})
        self._owned = [Slice.of(state, m, part) for m, part in enumerate(self._parts)]
        self._gradients = {one: state.waiting[i].clone() for i, one in enumerate(sorted(walk.flying))}

    def _hand_over(self, walk: Walk, state: DelayedSGDState) -> None:
        for part, known, versions in zip(self._parts, self._slices, walk.versions, strict=True):
            *old, newest = versions
            state.x[part] = known[newest]
            for row, version in enumerate(old):
                state.past[row, part] = known[version]
        for m, (own, part) in enumerate(zip(self._owned, self._parts, strict=True)):
            own.hand_over(state, m, part)
        for row, one in enumerate(sorted(walk.flying)):
            state.waiting[row] = self._gradients[one]
