"""A run of free workers made again from its trace, to the bit and on any number of ranks.

All ranks go through the trace together. Every gradient is computed where its worker is and reaches all; the
model, those older versions of its slices that gradients to come are of, and the gradients that are not
applied everywhere yet are the same on all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpcopt.ground.placement import block
from hpcopt.methods.parts.late_rates import Rate
from hpcopt.methods.parts.plan import Plan
from hpcopt.methods.parts.walk import Applied, Made, Walk, Wave

if TYPE_CHECKING:
    from hpcopt.comm.ports import Contribution


class Replay:
    """Makes a run again.

    Args:
        plan: of its trace.
        slices: S, of the model.
        dim: d.
        sum: for vectors like the model.
        start: the first worker here.
    """

    def __init__(self, plan: Plan[Walk], slices: int, dim: int, sum: Contribution, start: int) -> None:
        self._plan, self._sum, self._start = plan, sum, start
        parts = [block(dim, slices, m) for m in range(slices)]
        self._parts = [slice(part.start, part.stop) for part in parts]
        self._slices: list[dict[int, Tensor]] = []
        self._gradients: dict[tuple[int, int], Tensor] = {}

    def waves(self, round: int, x: Tensor, past: Tensor, waiting: Tensor) -> Iterator[Wave]:
        """What there is to do in a round; afterwards x, past and waiting are what the next one needs.

        Args:
            round: any at first, then one after the other.
            x: the model, (d,).
            past: old versions of its slices, as many as `Walk.sizes` says, (T, d).
            waiting: gradients, the same, (W, d).
        """
        if round >= self._plan.rounds:
            return
        walk, fresh = self._plan.at(round)
        if fresh:
            self._take_up(walk, x, past, waiting)
        for wave in walk.waves(round):
            yield wave
            for m, version in wave.old:
                del self._slices[m][version]
            for one in wave.spent:
                del self._gradients[one]
        self._hand_over(walk, x, past, waiting)

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
        first, *others = [self._gradients[one.worker, number][self._parts[one.to]] for number in one.numbers]
        g = first.clone() if others else first
        for other in others:
            g.add_(other)
        known = self._slices[one.to]
        known[one.version + len(one.numbers)] = known[one.version].clone().add_(g, alpha=-rate(one.late))

    def _take_up(self, walk: Walk, x: Tensor, past: Tensor, waiting: Tensor) -> None:
        """The rows of past are a slice's old versions, those of waiting the gradients, in ascending order."""
        self._slices = []
        for part, known in zip(self._parts, walk.versions, strict=True):
            rows = [*past[: len(known) - 1, part], x[part]]
            self._slices.append({version: row.clone() for version, row in zip(known, rows, strict=True)})
        self._gradients = {one: waiting[i].clone() for i, one in enumerate(sorted(walk.flying))}

    def _hand_over(self, walk: Walk, x: Tensor, past: Tensor, waiting: Tensor) -> None:
        for part, known, versions in zip(self._parts, self._slices, walk.versions, strict=True):
            *old, newest = versions
            x[part] = known[newest]
            for row, version in enumerate(old):
                past[row, part] = known[version]
        for row, one in enumerate(sorted(walk.flying)):
            waiting[row] = self._gradients[one]
