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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcopt.errors import UserError

if TYPE_CHECKING:
    from hpcopt.storage.trace import Rows, Segment, Trace

GRADIENTS, APPLIED = 0, 1
"""kinds of rows"""


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


class Stretch:
    """What happened between two rests, by worker and by slice, every row checked by itself.

    Args:
        trace: of which it is.
        segment: a part of it.
        rounds: that are in it.
        drawn: how many mini-batches every worker drew before, (N,).

    Attributes:
        gradients: of every worker, (k, 1 + S): its mini-batch, and the versions.
        applied: of every slice, (k, 6): worker, its first gradient, how many, round, the slice's version
            before, the sum of their versions.

    Raises:
        UserError: a row cannot be.
    """

    def __init__(self, trace: Trace, segment: Segment, rounds: range, drawn: Rows) -> None:
        self.rounds, self._trace, self._segment = rounds, trace, segment
        made, done = segment.gradients, segment.applied
        slices = range(trace.slices)
        self._check(range(len(drawn)), slices)
        self._rows = [np.flatnonzero(made[:, 0] == n) for n in range(len(drawn))]
        self.gradients = [made[rows, 1:] for rows in self._rows]
        for begin, mine, rows in zip(drawn, self.gradients, self._rows, strict=True):
            late = mine[:, 0] != begin + np.arange(len(mine))
            self._refuse(
                GRADIENTS, late, "a trace has all mini-batches of a worker, from 0 on, in order", rows
            )
        self.applied = [self._of_slice(m, np.flatnonzero(done[:, 0] == m)) for m in slices]

    def _check(self, workers: range, slices: range) -> None:
        """The numbers in single rows."""
        made, done = self._segment.gradients, self._segment.applied
        first, last = self.rounds.start, self.rounds.stop
        no_worker = f"its worker does not exist: there are workers 0 to {workers[-1]}"
        self._refuse(GRADIENTS, ~_within(made[:, 0], workers), no_worker)
        self._refuse(GRADIENTS, np.any(made < 0, axis=1), "must not be negative")
        self._refuse(APPLIED, ~_within(done[:, 1], workers), no_worker)
        no_slice = f"its slice does not exist: there are slices 0 to {slices[-1]}"
        self._refuse(APPLIED, ~_within(done[:, 0], slices), no_slice)
        self._refuse(APPLIED, done[:, 2] < 1, "at least 1 gradient is applied at a time")
        # where the run came to rest the next round had begun
        rounds = f"of rounds {first} to {last} only, and in order"
        self._refuse(APPLIED, ~_within(done[:, 3], range(first, last + 1)), rounds)

    def _of_slice(self, m: int, rows: Rows) -> Rows:
        """See `applied`."""
        _, worker, count, round = self._segment.applied[rows].T
        self._refuse(APPLIED, np.diff(round, prepend=0) < 0, "comes after a later round", rows)
        total = np.bincount(worker, count, len(self.gradients)).astype(np.int64)
        for n, made in enumerate(self.gradients):
            if total[n] != len(made):
                raise UserError(
                    f"{self._trace.path}: before round {self.rounds.stop} worker {n} made {len(made)} "
                    f"gradients, but {total[n]} were applied to slice {m}: all are, each once"
                )
        version, begin, stamps = np.cumsum(count), np.zeros_like(count), np.zeros_like(count)
        for n, made in enumerate(self.gradients):
            unknown = ~np.isin(made[:, 1 + m], np.append(0, version))
            self._refuse(GRADIENTS, unknown, f"slice {m} never had this version", self._rows[n])
            mine, sums = worker == n, np.append(0, np.cumsum(made[:, 1 + m]))
            ends = np.cumsum(count[mine])
            begin[mine] = ends - count[mine]
            stamps[mine] = sums[ends] - sums[begin[mine]]
        return np.stack([worker, begin, count, round, version - count, stamps], 1)

    def refuse_gradient(self, worker: int, number: int) -> None:
        """Raises for one that is of versions that are only there after it was applied."""
        this = np.arange(len(self._rows[worker])) == number
        text = "refers to the future: to versions that cannot be there before it is applied itself"
        self._refuse(GRADIENTS, this, text, self._rows[worker])

    def _refuse(self, kind: int, bad: NDArray[Any], text: str, rows: Rows | None = None) -> None:
        """Raises for the first bad row, of these or of all."""
        if bad.any():
            at = int(np.argmax(bad)) if rows is None else int(rows[np.argmax(bad)])
            raise UserError(f"{self._trace.row(kind, self._segment, at)}: {text}")


def _within(values: Rows, allowed: range) -> NDArray[np.bool_]:
    return (values >= allowed.start) & (values < allowed.stop)


class Walk:
    """Through a stretch, round by round.

    Attributes:
        versions: of every slice those that are still needed, the newest last.
        flying: the gradients (worker, number) that are still to be applied somewhere.
    """

    def __init__(self, stretch: Stretch) -> None:
        self._stretch = stretch
        workers, slices = len(stretch.gradients), len(stretch.applied)
        self.versions = [[0] for _ in range(slices)]
        self.flying: dict[tuple[int, int], int] = {}
        self._made, self._done = [0] * workers, [0] * slices
        # gradients to come that are of a version, by slice
        self._readers = [
            Counter(np.concatenate([made[:, 1 + m] for made in stretch.gradients]).tolist())
            for m in range(slices)
        ]
        # for `_goal`: the latest versions that a worker's gradients so far are of, and how many are applied
        self._latest = [np.maximum.accumulate(made[:, 1:], 0) for made in stretch.gradients]
        self._used, self._wanted = np.zeros((slices, workers), np.int64), np.zeros(slices, np.int64)

    def waves(self, round: int) -> Iterator[Wave]:
        """What is left to do until all of a round is applied; rounds are asked for in order.

        Raises:
            UserError: a gradient depends on itself.
        """
        made = self._goal(round)
        while self._made < made or self._done < self._wanted.tolist():
            wave = Wave()
            for n in range(len(made)):
                self._make(n, made[n], wave)
            for m in range(len(self._done)):
                self._apply(m, int(self._wanted[m]), wave)
            if not (wave.gradients or wave.applied):
                stuck = next(n for n in range(len(made)) if self._made[n] < made[n])
                self._stretch.refuse_gradient(stuck, self._made[stuck])
            self._forget(wave)
            yield wave

    def _goal(self, round: int) -> list[int]:
        """How many gradients of each worker are made until a round ends; and `_wanted`, of slices."""
        last = self._stretch.rounds.stop - 1
        until = [
            np.searchsorted(done[:, 3], round + (round == last), "right") for done in self._stretch.applied
        ]
        while True:
            for m, (done, stop) in enumerate(zip(self._stretch.applied, until, strict=True)):
                new = done[self._wanted[m] : stop]
                np.add.at(self._used[m], new[:, 0], new[:, 2])
                self._wanted[m] = max(stop, self._wanted[m])
            made = self._used.max(0)
            needed = [latest[k - 1] for latest, k in zip(self._latest, made, strict=True) if k]
            if not needed:
                return made.tolist()
            after = [done[:, 4] + done[:, 2] for done in self._stretch.applied]
            until = [
                np.searchsorted(ends, version) + (version > 0)
                for ends, version in zip(after, np.max(needed, 0), strict=True)
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
            n, begin, count, round, version, stamps = self._stretch.applied[m][self._done[m]].tolist()
            if begin + count > self._made[n]:
                return
            numbers = range(begin, begin + count)
            wave.applied.append(Applied(m, n, numbers, version, version - stamps / count, round))
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
