"""The ports' in-process twins: all N workers here, no MPI. The oracle in tests of parallel runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from hpcopt.comm.local_neighbours import LocalNeighbours
from hpcopt.comm.local_sparse import LocalSparseSum
from hpcopt.comm.ports import (
    Counter,
    Exchange,
    Later,
    Neighbours,
    Reducer,
    Select,
    SparseSum,
    Summing,
    Way,
    allreduce_bytes,
    gather_bytes,
)
from hpcopt.placement import block

if TYPE_CHECKING:
    from hpcopt.math.mixing import Mixing


class LocalReducer:
    """`Reducer` for one process that holds all workers.

    Args:
        workers: N.
        ordered: take one row per worker and sum in the order of the workers.
        ranks: count bytes as if the workers lived on so many ranks (rank 0's bytes).
    """

    def __init__(self, workers: int, ordered: bool = False, ranks: int = 1) -> None:
        self.counter = Counter()
        self.form: Literal["sum", "weighted"] = "weighted" if ordered else "sum"
        self._workers, self._ranks = workers, ranks

    def own(self, size: int) -> range:
        """See `Reducer`."""
        return block(size, 1, 0)

    def sum(self, part: Tensor) -> Tensor:
        """See `Reducer`."""
        return self._sum(part, passes=1.0)

    def begin(self, part: Tensor) -> Summing:
        """See `Reducer`."""
        return Later(self.sum, part)

    def scalars(self, values: Tensor) -> Tensor:
        """See `Reducer`."""
        return self._sum(values, passes=0.0)

    def reduce_scatter(self, part: Tensor) -> Tensor:
        """See `Reducer`."""
        start = time.perf_counter()
        total = self._total(part)
        self._add(start, total, 0.5, gather_bytes)
        return total

    def allgather(self, piece: Tensor, size: int) -> Tensor:
        """See `Reducer`."""
        assert len(piece) == size
        self._add(time.perf_counter(), piece, 0.5, gather_bytes)
        return piece

    def free(self) -> None:
        """See `Reducer`."""

    def _sum(self, part: Tensor, passes: float) -> Tensor:
        start = time.perf_counter()
        total = self._total(part)
        self._add(start, total, passes, allreduce_bytes)
        return total

    def _total(self, part: Tensor) -> Tensor:
        return part if self.form == "sum" else sum_in_order(part)

    def _add(self, since: float, whole: Tensor, passes: float, share: Callable[[int, int], float]) -> None:
        nbytes = whole.numel() * whole.element_size()
        workers = self._workers * share(nbytes, self._workers)
        self.counter.add(since, share(nbytes, self._ranks), workers, passes)


class LocalPorts:
    """`Ports` for one process that holds all workers.

    Args:
        workers: N.
        ordered, ranks: see `LocalReducer`.
    """

    def __init__(self, workers: int, ordered: bool = False, ranks: int = 1) -> None:
        self._workers, self._ordered, self._ranks = workers, ordered, ranks
        self.reduce: Reducer = LocalReducer(workers, ordered, ranks)

    def sparse_sum(self, like: Tensor, exchange: Exchange = "auto", select: Select = "local") -> SparseSum:
        """See `Ports`."""
        return LocalSparseSum(self._workers, like, exchange, select, self._ranks, self._ordered)

    def fastest(self, name: str, ways: Mapping[str, Way | None]) -> str:
        """The first: nothing is timed here."""
        return next(iter(ways))

    def neighbours(self, like: Tensor, mixing: Mixing) -> Neighbours:
        """See `Ports`."""
        return LocalNeighbours(like, mixing, self._ranks)


def sum_in_order(rows: Tensor) -> Tensor:
    """Σ rows, added one after the other: the same bits however the columns are split."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total
