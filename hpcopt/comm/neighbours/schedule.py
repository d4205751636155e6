"""Who sends which workers' rows to whom in X ← W X: a pure function of W, the workers and the ranks.

Rank p sends row j to rank q if some worker on q has W_ij ≠ 0: once, however many workers there need it.

Symbols: N workers, n of them on this rank, i and j workers, P ranks, W (N, N) sparse with rows that sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpcopt.costs.volumes import entries, rows_sent
from hpcopt.ground.placement import Placement

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from hpcopt.math.averages import Terms

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Schedule:
    """One rank's part in a round.

    Attributes:
        sends: rows here, counted from this rank's first, that each other rank needs; ascending.
        receives: slots of the landing that each other rank's rows fill, in the order of its workers.
        terms: for each worker here W_ij of its neighbours and itself, in ascending order of the workers j, as
            `hpcopt.math.averages` takes them.
        fan_out: Σ over the workers here of how many others need their row.
    """

    sends: dict[int, tuple[int, ...]]
    receives: dict[int, range]
    terms: Terms
    fan_out: int

    @property
    def sent(self) -> int:
        """Rows that leave this rank, each counted once for every rank that it goes to."""
        return sum(map(len, self.sends.values()))

    @property
    def leaving(self) -> tuple[int, ...]:
        """Rows here that some other rank needs; ascending."""
        return tuple(sorted(set().union(*self.sends.values())))

    @property
    def received(self) -> int:
        """Slots that the landing needs."""
        return sum(map(len, self.receives.values()))


def schedule(W: csr_array, placement: Placement) -> Schedule:
    """The part of this rank; takes time and memory in proportion to the entries of W."""
    N = W.shape[0]
    i, j, w = entries(W)
    owner, here, rank = placement.owners, placement.here, placement.rank
    needs, has = owner[i] == rank, owner[j] == rank
    sends = {q: tuple((rows - here.start).tolist()) for q, rows in _by_rank(owner[i], j, has & ~needs, N)}
    receives, slots, at = {}, [np.empty(0, np.int64)], 0
    for q, rows in _by_rank(owner[j], j, needs & ~has, N):
        receives[q] = range(at, at := at + len(rows))
        slots.append(rows)
    sources = np.where(has, j - here.start, len(here) + np.searchsorted(np.concatenate(slots), j))
    cuts = np.searchsorted(i, np.arange(here.start, here.stop + 1))
    terms = tuple(
        tuple(zip(sources[a:b].tolist(), w[a:b].tolist(), strict=True)) for a, b in pairwise(cuts.tolist())
    )
    return Schedule(sends, receives, terms, int((has & (i != j)).sum()))


def travelling(W: csr_array, placement: Placement) -> int:
    """Rows that travel between ranks in a round, each once per pair of ranks; with N ranks, its messages."""
    return int(rows_sent(W, placement.owners).sum())


def _by_rank(rank: Numbers, row: Numbers, chosen: NDArray[np.bool_], N: int) -> list[tuple[int, Numbers]]:
    """The different rows of the chosen (rank, row) pairs, ascending, for every rank that has some."""
    pairs = np.unique(rank[chosen] * N + row[chosen])
    found, starts = np.unique(pairs // N, return_index=True)
    # without any pair the split gives one empty piece more than there are ranks
    return list(zip(found.tolist(), np.split(pairs % N, starts[1:]), strict=False))
