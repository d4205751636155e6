"""The ports' in-process twins: all N workers here, no MPI. The oracle in tests of parallel runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hpcopt.comm.contribution import Buffer
from hpcopt.comm.local_neighbours import LocalNeighbours
from hpcopt.comm.local_sparse import LocalSparseSum
from hpcopt.comm.opened import Opened
from hpcopt.comm.ports import (
    VERBS,
    Counter,
    Exchange,
    Gradients,
    Neighbours,
    Reducer,
    Select,
    SparseSum,
    Way,
    allreduce_bytes,
    gather_bytes,
)

if TYPE_CHECKING:
    from hpcopt.math.mixing import Mixing


class LocalReducer:
    """`Reducer` for one process that holds all workers.

    Args:
        workers: N.
        like: a vector (d,) like the model.
        ordered: keep the workers' vectors apart and sum in the order of the workers.
        ranks: count bytes as if the workers lived on so many ranks (rank 0's bytes).
    """

    def __init__(self, workers: int, like: Tensor, ordered: bool = False, ranks: int = 1) -> None:
        self._workers, self._like, self._ordered, self._ranks = workers, like, ordered, ranks
        self._gradient: Buffer | None = None
        self.counters = {verb: Counter() for verb in VERBS}

    def gradient(self, problem: Gradients, x: Tensor, draw: Any = None) -> Tensor:
        """See `Reducer`."""
        if self._gradient is None:
            self._gradient = self.contribution(len(self._like))
        return self._gradient.add_gradients(problem, x, draw).sum()

    def contribution(self, size: int) -> Buffer:
        """See `Reducer`."""
        workers = self._workers if self._ordered else None
        return Buffer(size, self._like, workers, lambda part: self._sum(part, "sum"), self._scatter)

    def sum(self, rows: Tensor) -> Tensor:
        """See `Reducer`."""
        return self._sum(rows if self._ordered else rows.sum(0), "sum")

    def scalars(self, rows: Tensor) -> Tensor:
        """See `Reducer`."""
        return self._sum(rows if self._ordered else rows.sum(0), "scalars")

    def slices(self, values: Tensor) -> Tensor:
        """See `Reducer`."""
        self._count("slices", time.perf_counter(), values, allreduce_bytes, 0.0)
        return values.clone()

    def own(self, size: int) -> range:
        """See `Reducer`."""
        return range(size)

    def allgather(self, piece: Tensor, size: int) -> Tensor:
        """See `Reducer`."""
        assert len(piece) == size
        self._count("gather", time.perf_counter(), piece, gather_bytes, 0.5)
        return piece.clone()

    def free(self) -> None:
        """See `Reducer`."""

    def _sum(self, part: Tensor, verb: str) -> Tensor:
        start = time.perf_counter()
        total = self._total(part)
        self._count(verb, start, total, allreduce_bytes, 0.0 if verb == "scalars" else 1.0)
        return total

    def _scatter(self, part: Tensor) -> Tensor:
        start = time.perf_counter()
        total = self._total(part)
        self._count("scatter", start, total, gather_bytes, 0.5)
        return total

    def _total(self, part: Tensor) -> Tensor:
        return sum_in_order(part) if self._ordered else part

    def _count(
        self, verb: str, since: float, whole: Tensor, share: Callable[[int, int], float], passes: float
    ) -> None:
        nbytes = whole.numel() * whole.element_size()
        workers = self._workers * share(nbytes, self._workers)
        passes *= len(whole) == len(self._like)
        self.counters[verb].add(since, share(nbytes, self._ranks), workers, nbytes, passes)


class LocalPorts:
    """`Ports` for one process that holds all workers.

    Args:
        workers: N.
        like: a vector (d,) like the model.
        ordered, ranks: see `LocalReducer`.
    """

    def __init__(self, workers: int, like: Tensor, ordered: bool = False, ranks: int = 1) -> None:
        self._workers, self._ordered, self._ranks = workers, ordered, ranks
        self.reduce: Reducer = LocalReducer(workers, like, ordered, ranks)
        self._open = Opened(self.reduce)
        self.chosen: dict[str, Any] = {}

    def sparse_sum(self, like: Tensor, exchange: Exchange = "auto", select: Select = "local") -> SparseSum:
        """See `Ports`."""
        port = LocalSparseSum(self._workers, like, exchange, select, self._ranks, self._ordered)
        return self._open.add("sparse", port)

    def neighbours(self, like: Tensor, mixing: Mixing) -> Neighbours:
        """See `Ports`."""
        return self._open.add("neighbours", LocalNeighbours(like, mixing, self._ranks))

    def fastest(self, name: str, ways: Mapping[str, Way | None]) -> str:
        """The first: nothing is timed here."""
        return next(iter(ways))

    def counters(self) -> dict[str, Counter]:
        """The counter of every open port, by name."""
        return self._open.counters()

    def free(self) -> None:
        """Frees all ports."""
        self._open.free()


def sum_in_order(rows: Tensor) -> Tensor:
    """Σ rows, added one after the other: the same bits however the columns are split."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total
