"""A part of the trace of free workers, between two rests, every row checked by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcopt.errors import UserError

if TYPE_CHECKING:
    from hpcopt.storage.trace import Rows, Segment, Trace

GRADIENTS, APPLIED = 0, 1
"""kinds of rows"""


class Stretch:
    """What happened between two rests, by worker and by slice.

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
