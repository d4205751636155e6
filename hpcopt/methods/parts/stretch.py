"""A part of the trace of free workers, between two rests, every row checked by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcopt.errors import UserError

if TYPE_CHECKING:
    from hpcopt.storage.trace import Rows, Segment, Trace

GRADIENTS, APPLIED = 0, 1
"""kinds of rows; where workers average with their neighbours the second one has what was averaged"""


class Stretch:
    """What happened between two rests: gradients by worker, and what came of them.

    Args:
        trace: of which it is.
        segment: a part of it.
        rounds: that are in it.
        drawn: how many mini-batches every worker drew before, (N,).

    Attributes:
        rounds, drawn: as given.
        gradients: of every worker, (k, w): its mini-batch, and what else a row has.
        applied: as in the file.

    Raises:
        UserError: a row cannot be.
    """

    def __init__(self, trace: Trace, segment: Segment, rounds: range, drawn: Rows) -> None:
        self.rounds, self.drawn, self.applied = rounds, drawn, segment.applied
        self._trace, self._segment = trace, segment
        made = segment.gradients
        self.check_workers(GRADIENTS, made[:, 0])
        self.refuse(GRADIENTS, np.any(made < 0, axis=1), "must not be negative")
        self._rows = [np.flatnonzero(made[:, 0] == n) for n in range(len(drawn))]
        self.gradients = [made[rows, 1:] for rows in self._rows]
        for n, (begin, mine) in enumerate(zip(drawn, self.gradients, strict=True)):
            late = mine[:, 0] != begin + np.arange(len(mine))
            self.refuse_of(n, late, "a trace has all mini-batches of a worker, from 0 on, in order")

    def check_workers(self, kind: int, workers: Rows) -> None:
        """That there are such workers; one of each row of a kind."""
        text = f"its worker does not exist: there are workers 0 to {len(self.drawn) - 1}"
        self.refuse(kind, ~within(workers, range(len(self.drawn))), text)

    def refuse(self, kind: int, bad: NDArray[Any], text: str, rows: Rows | None = None) -> None:
        """Raises for the first bad row, of these or of all."""
        if bad.any():
            at = int(np.argmax(bad)) if rows is None else int(rows[np.argmax(bad)])
            raise UserError(f"{self._trace.row(kind, self._segment, at)}: {text}")

    def refuse_of(self, worker: int, bad: NDArray[Any], text: str) -> None:
        """Raises for the first bad one of a worker's gradients."""
        self.refuse(GRADIENTS, bad, text, self._rows[worker])

    def refuse_all(self, text: str) -> None:
        """Raises, and names no row."""
        raise UserError(f"{self._trace.path}: before round {self.rounds.stop} {text}")


def of_slices(stretch: Stretch, slices: int) -> list[Rows]:
    """What was applied to every slice, checked.

    Returns:
        Of each (k, 6): worker, its first gradient, how many, round, the slice's version before, the sum of
        their versions.
    """
    done, first, last = stretch.applied, stretch.rounds.start, stretch.rounds.stop
    stretch.check_workers(APPLIED, done[:, 1])
    no_slice = f"its slice does not exist: there are slices 0 to {slices - 1}"
    stretch.refuse(APPLIED, ~within(done[:, 0], range(slices)), no_slice)
    stretch.refuse(APPLIED, done[:, 2] < 1, "at least 1 gradient is applied at a time")
    # where the run came to rest the next round had begun
    rounds = f"of rounds {first} to {last} only, and in order"
    stretch.refuse(APPLIED, ~within(done[:, 3], range(first, last + 1)), rounds)
    return [_of_slice(stretch, m, np.flatnonzero(done[:, 0] == m)) for m in range(slices)]


def _of_slice(stretch: Stretch, m: int, rows: Rows) -> Rows:
    """See `of_slices`."""
    _, worker, count, round = stretch.applied[rows].T
    stretch.refuse(APPLIED, np.diff(round, prepend=0) < 0, "comes after a later round", rows)
    total = np.bincount(worker, count, len(stretch.gradients)).astype(np.int64)
    for n, made in enumerate(stretch.gradients):
        if total[n] != len(made):
            stretch.refuse_all(
                f"worker {n} made {len(made)} gradients, but {total[n]} were applied to slice {m}: all are, "
                "each once"
            )
    version, begin, stamps = np.cumsum(count), np.zeros_like(count), np.zeros_like(count)
    for n, made in enumerate(stretch.gradients):
        unknown = ~np.isin(made[:, 1 + m], np.append(0, version))
        stretch.refuse_of(n, unknown, f"slice {m} never had this version")
        mine, sums = worker == n, np.append(0, np.cumsum(made[:, 1 + m]))
        ends = np.cumsum(count[mine])
        begin[mine] = ends - count[mine]
        stamps[mine] = sums[ends] - sums[begin[mine]]
    return np.stack([worker, begin, count, round, version - count, stamps], 1)


def within(values: Rows, allowed: range) -> NDArray[np.bool_]:
    """Which of some numbers are in a range."""
    return (values >= allowed.start) & (values < allowed.stop)
