"""The trace of free workers in an order in which it can be made again.

A gradient needs the versions of the slices that its worker knew, an application the gradients that it
applies, and the slice as it was before. So what can be computed next follows from the trace alone, on any
number of ranks the same.

A round has what was applied in it, by the round of the slice's owner, and what that needs: owners are not in
the same round at the same time, so this may be something of a later one. Where the run was at rest, all that
was before is applied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hpcopt.methods.parts.staleness import mean_staleness
from hpcopt.methods.parts.stretch import Stretch, of_slices


class Made(NamedTuple):
    """A gradient.

    Attributes:
        worker: whose.
        number: which of the worker's since the last rest.
        draw: its mini-batch.
        versions: of every slice.
    """

    worker: int
    number: int
    draw: int
    versions: tuple[int, ...]


class Applied(NamedTuple):
    """Gradients of a worker, one after the other, that are added up and applied to a slice.

    Attributes:
        to: the slice.
        worker: whose.
        numbers: which of the worker's.
        version: of the slice, before.
        late: their mean staleness.
        round: of the slice's owner.
    """

    to: int
    worker: int
    numbers: range
    version: int
    late: float
    round: int


@dataclass
class Wave:
    """Gradients that can be computed at once, what can be applied then, and what nobody needs any more.

    Attributes:
        gradients, applied: in this order.
        old: versions (slice, version).
        spent: gradients (worker, number).
    """

    gradients: list[Made] = field(default_factory=list)
    applied: list[Applied] = field(default_factory=list)
    old: list[tuple[int, int]] = field(default_factory=list)
    spent: list[tuple[int, int]] = field(default_factory=list)


class Walk:
    """Through a stretch, round by round.

    Args:
        stretch: of gradients that are of slices.
        slices: S.

    Raises:
        UserError: a row cannot be.

    Attributes:
        changes: the rounds in which anything happens.
        versions: of every slice those that are still needed, the newest last.
        flying: the gradients (worker, number) that are still to be applied somewhere.
    """

    def __init__(self, stretch: Stretch, slices: int) -> None:
        self._stretch, self._applied = stretch, of_slices(stretch, slices)
        workers = len(stretch.gradients)
        self.versions = [[0] for _ in range(slices)]
        self.flying: dict[tuple[int, int], int] = {}
        self.changes = np.unique(np.concatenate([done[:, 3] for done in self._applied]))
        self._made, self._done = [0] * workers, [0] * slices
        # gradients to come that are of a version, by slice
        self._readers = [
            Counter(np.concatenate([made[:, 1 + m] for made in stretch.gradients]).tolist())
            for m in range(slices)
        ]
        # for `_goal`: the latest versions that a worker's gradients so far are of, and how many are applied
        self._latest = [np.maximum.accumulate(made[:, 1:], 0) for made in stretch.gradients]
        self._after = [done[:, 4] + done[:, 2] for done in self._applied]
        self._used, self._wanted = np.zeros((slices, workers), np.int64), np.zeros(slices, np.int64)

    def waves(self, round: int) -> Iterator[Wave]:
        """See `hpcopt.methods.parts.plan.Way`."""
        made = self._goal(round)
        while self._made < made or self._done < self._wanted.tolist():
            wave = Wave()
            for n in range(len(made)):
                self._make(n, made[n], wave)
            for m in range(len(self._done)):
                self._apply(m, int(self._wanted[m]), wave)
            if not (wave.gradients or wave.applied):
                stuck = next(n for n in range(len(made)) if self._made[n] < made[n])
                self._refuse_gradient(stuck, self._made[stuck])
            self._forget(wave)
            yield wave

    def sizes(self) -> tuple[int, int]:
        """How many old versions of a slice are needed, at most, and how many gradients."""
        return max(len(known) - 1 for known in self.versions), len(self.flying)

    def _refuse_gradient(self, worker: int, number: int) -> None:
        this = np.arange(len(self._stretch.gradients[worker])) == number
        text = "refers to the future: to versions that cannot be there before it is applied itself"
        self._stretch.refuse_of(worker, this, text)

    def _goal(self, round: int) -> list[int]:
        """How many gradients of each worker are made until a round ends; and `_wanted`, of slices."""
        last = self._stretch.rounds.stop - 1
        until = [np.searchsorted(done[:, 3], round + (round == last), "right") for done in self._applied]
        while True:
            for m, (done, stop) in enumerate(zip(self._applied, until, strict=True)):
                new = done[self._wanted[m] : stop]
                np.add.at(self._used[m], new[:, 0], new[:, 2])
                self._wanted[m] = max(stop, self._wanted[m])
            made = self._used.max(0)
            needed = [latest[k - 1] for latest, k in zip(self._latest, made, strict=True) if k]
            if not needed:
                return made.tolist()
            until = [
                np.searchsorted(ends, version) + (version > 0)
                for ends, version in zip(self._after, np.max(needed, 0), strict=True)
            ]
            if (np.array(until) <= self._wanted).all():
                return made.tolist()

    def _make(self, n: int, stop: int, wave: Wave) -> None:
        """Gradients of a worker, as long as all that they are of is there."""
        while self._made[n] < stop:
            draw, *versions = self._stretch.gradients[n][self._made[n]].tolist()
            if not all(version in known for version, known in zip(versions, self.versions, strict=True)):
                return
            wave.gradients.append(Made(n, self._made[n], draw, tuple(versions)))
            self.flying[n, self._made[n]] = len(self.versions)
            self._made[n] += 1
            for version, readers in zip(versions, self._readers, strict=True):
                readers[version] -= 1

    def _apply(self, m: int, stop: int, wave: Wave) -> None:
        """What was applied to a slice, as long as the gradients are there."""
        while self._done[m] < stop:
            n, begin, count, round, version, stamps = self._applied[m][self._done[m]].tolist()
            if begin + count > self._made[n]:
                return
            numbers = range(begin, begin + count)
            late = mean_staleness(version, stamps, count)
            wave.applied.append(Applied(m, n, numbers, version, late, round))
            self.versions[m].append(version + count)
            self._done[m] += 1
            for number in numbers:
                self.flying[n, number] -= 1

    def _forget(self, wave: Wave) -> None:
        """What no gradient or application to come needs."""
        for m, (known, readers) in enumerate(zip(self.versions, self._readers, strict=True)):
            wave.old += [(m, version) for version in known[:-1] if not readers[version]]
            known[:-1] = [version for version in known[:-1] if readers[version]]
        applied = {(event.worker, number) for event in wave.applied for number in event.numbers}
        for one in sorted(applied):
            if not self.flying[one]:
                wave.spent.append(one)
                del self.flying[one]
