"""A run of free workers made again from its trace, to the bit and on any number of ranks.

All ranks go through the trace together. Every gradient is computed where its worker is and reaches all; the
model, those older versions of its slices that gradients to come are of, and the gradients that are not
applied everywhere yet are the same on all of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hpcopt.errors import UserError
from hpcopt.ground.placement import block
from hpcopt.methods.parts.late_rates import Rate
from hpcopt.methods.parts.stretch import Stretch
from hpcopt.methods.parts.walk import Applied, Made, Walk, Wave

if TYPE_CHECKING:
    from hpcopt.comm.ports import Contribution
    from hpcopt.storage.trace import Segment, Trace


class Plan:
    """A trace, checked from the first row to the last without computing any gradient. Local.

    Args:
        trace: of free workers.
        workers: N.
        dim: d.
        window: rows of a round, where the trace does not say.

    Attributes:
        digest: of the trace.
        rounds: in which anything happens.
        slices: of the model, S of them.
        versions: how many old versions of a slice are needed where a round ends, at most.
        flying: how many gradients are then still to be applied somewhere, at most.

    Raises:
        UserError: it is another run's, or cannot be.
    """

    def __init__(self, trace: Trace, workers: int, dim: int, window: int) -> None:
        self.digest, made_for = trace.digest(), trace.made_for or (workers, dim)
        if made_for != (workers, dim):
            raise UserError(
                f"{trace.path}: is of {made_for[0]} workers and {made_for[1]} parameters, but there are "
                f"{workers} workers and {dim} parameters"
            )
        self.slices = [
            slice(part.start, part.stop)
            for m in range(trace.slices)
            for part in [block(dim, trace.slices, m)]
        ]
        self._stretches = _stretches(trace, workers, window)
        self._ends = [stretch.rounds.stop for stretch in self._stretches]
        self.rounds = self._ends[-1] if self._ends else 0
        self.versions = self.flying = 0
        for stretch in self._stretches:
            self._try(stretch)

    def _try(self, stretch: Stretch) -> None:
        walk = Walk(stretch)
        changes = np.unique(np.concatenate([done[:, 3] for done in stretch.applied]))
        for round in [*changes[changes < stretch.rounds.stop - 1].tolist(), stretch.rounds.stop - 1]:
            for _ in walk.waves(round):
                pass
            self.versions = max(self.versions, *(len(known) - 1 for known in walk.versions))
            self.flying = max(self.flying, len(walk.flying))

    def walk(self, round: int) -> Walk:
        """At the beginning of a round that the trace has."""
        stretch = self._stretches[bisect_right(self._ends, round)]
        walk = Walk(stretch)
        if round > stretch.rounds.start:
            for _ in walk.waves(round - 1):
                pass
        return walk

    def rests(self, round: int) -> bool:
        """Whether the run was at rest before a round, so that what comes is another stretch."""
        return round in self._ends


def _stretches(trace: Trace, workers: int, window: int) -> list[Stretch]:
    found: list[Stretch] = []
    begin, drawn = 0, np.zeros(workers, np.int64)
    for segment in trace.segments:
        segment = _windows(segment, window) if trace.window else segment
        found.append(Stretch(trace, segment, range(begin, segment.end), drawn))
        begin = segment.end
        drawn = drawn + np.array([len(made) for made in found[-1].gradients])
    return found


def _windows(segment: Segment, window: int) -> Segment:
    """With so many rows in each round."""
    applied = segment.applied.copy()
    applied[:, 3] = np.arange(len(applied)) // window
    return replace(segment, applied=applied, end=int(applied[-1, 3]) + 1)


class Replay:
    """Makes a run again.

    Args:
        plan: of its trace.
        sum: for vectors like the model.
        start: the first worker here.
    """

    def __init__(self, plan: Plan, sum: Contribution, start: int) -> None:
        self._plan, self._sum, self._start = plan, sum, start
        self._round = -1
        self._walk: Walk | None = None
        self._slices: list[dict[int, Tensor]] = []
        self._gradients: dict[tuple[int, int], Tensor] = {}

    def waves(self, round: int, x: Tensor, past: Tensor, waiting: Tensor) -> Iterator[Wave]:
        """What there is to do in a round; afterwards x, past and waiting are what the next one needs.

        Args:
            round: any at first, then one after the other.
            x: the model, (d,).
            past: old versions of its slices, (`Plan.versions`, d).
            waiting: gradients, (`Plan.flying`, d).
        """
        if round >= self._plan.rounds:
            return
        walk = self._walk
        if walk is None or round != self._round or self._plan.rests(round):
            walk = self._walk = self._plan.walk(round)
            self._take_up(walk, x, past, waiting)
        for wave in walk.waves(round):
            yield wave
            for m, version in wave.old:
                del self._slices[m][version]
            for one in wave.spent:
                del self._gradients[one]
        self._hand_over(walk, x, past, waiting)
        self._round = round + 1

    def over(self, round: int) -> bool:
        """Whether a round is the trace's last."""
        return round + 1 >= self._plan.rounds

    def model(self, one: Made) -> Tensor:
        """What a gradient is of, (d,), new memory."""
        return torch.cat([known[version] for known, version in zip(self._slices, one.versions, strict=True)])

    def share(self, gradients: list[Made], here: Mapping[Made, Tensor]) -> None:
        """Gradients reach all ranks. Collective.

        Args:
            gradients: of all workers.
            here: those of the workers here, (d,).
        """
        for one in gradients:
            if one in here:
                self._sum.add(one.worker - self._start, here[one])
            self._gradients[one.worker, one.number] = self._sum.sum().clone()

    def apply(self, one: Applied, rate: Rate) -> None:
        """x_m ← x_m − η(τ) g, as `hpcopt.methods.parts.owners.Owners.apply` did."""
        first, *others = [
            self._gradients[one.worker, number][self._plan.slices[one.to]] for number in one.numbers
        ]
        g = first.clone() if others else first
        for other in others:
            g.add_(other)
        known = self._slices[one.to]
        known[one.version + len(one.numbers)] = known[one.version].clone().add_(g, alpha=-rate(one.late))

    def _take_up(self, walk: Walk, x: Tensor, past: Tensor, waiting: Tensor) -> None:
        """The rows of past are a slice's old versions, those of waiting the gradients, in ascending order."""
        self._slices = []
        for part, known in zip(self._plan.slices, walk.versions, strict=True):
            rows = [*past[: len(known) - 1, part], x[part]]
            self._slices.append({version: row.clone() for version, row in zip(known, rows, strict=True)})
        self._gradients = {one: waiting[i].clone() for i, one in enumerate(sorted(walk.flying))}

    def _hand_over(self, walk: Walk, x: Tensor, past: Tensor, waiting: Tensor) -> None:
        for part, known, versions in zip(self._plan.slices, self._slices, walk.versions, strict=True):
            *old, newest = versions
            x[part] = known[newest]
            for row, version in enumerate(old):
                past[row, part] = known[version]
        for row, one in enumerate(sorted(walk.flying)):
            waiting[row] = self._gradients[one]
