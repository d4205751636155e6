"""The ports' in-process twins: all N workers here, no MPI. The oracle in tests of parallel runs."""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hpcopt.comm.beside.in_line import InLine
from hpcopt.comm.mailbox.local_mailbox import Delay, LocalMailbox
from hpcopt.comm.neighbours.common_average import CommonAverage
from hpcopt.comm.neighbours.local_neighbours import LocalNeighbours
from hpcopt.comm.opened import Opened
from hpcopt.comm.ports import (
    Beside,
    Counter,
    Exchange,
    Full,
    Mailbox,
    Neighbours,
    Receive,
    Reducer,
    Select,
    SparseSum,
    Task,
    Transport,
    Way,
)
from hpcopt.comm.reduce.local_reducer import LocalReducer
from hpcopt.comm.sparse.local_sparse_sum import LocalSparseSum
from hpcopt.ground.placement import Placement

if TYPE_CHECKING:
    from hpcopt.math.mixing import Mixing


class LocalPorts:
    """`Ports` for one process that holds all workers.

    Args:
        workers: N.
        like: a vector (d,) like the model.
        ordered, ranks: see `LocalReducer`.
        delay: of what is put into a mailbox, see `LocalMailbox`.
        timed: choose the fastest of several ways; else the first.
    """

    def __init__(
        self,
        workers: int,
        like: Tensor,
        ordered: bool = False,
        ranks: int = 1,
        delay: Delay | None = None,
        timed: bool = False,
    ) -> None:
        self._delay, self._timed = delay, timed
        self._workers, self._ordered, self._ranks, self._like = workers, ordered, ranks, like
        self.reduce: Reducer = LocalReducer(workers, like, ordered, ranks)
        self._open = Opened(self.reduce)
        self.chosen: dict[str, Any] = {}
        self.remembered: dict[str, dict[str, Any]] = {}
        self.wish: Callable[[], int] = lambda: 0

    def sparse_sum(self, like: Tensor, exchange: Exchange = "auto", select: Select = "local") -> SparseSum:
        """See `Ports`."""
        port = LocalSparseSum(self._workers, like, exchange, select, self._ranks, self._ordered)
        return self._open.add("sparse", port)

    def beside(self, task: Task) -> Beside:
        """See `Ports`."""
        return InLine(task)

    def agree_same(self, digest: str, message: str) -> None:
        """Nothing: there is one process."""

    def neighbours(self, like: Tensor, mixing: Mixing) -> Neighbours:
        """See `Ports`."""
        return self._open.add("neighbours", self._neighbours(like, mixing))

    def fastest(self, name: str, ways: Mapping[str, Way | None]) -> str:
        """See `Ports`."""
        if not self._timed:
            return next(iter(ways))
        possible = {way: call for way, call in ways.items() if call is not None}
        if len(possible) == 1:
            return next(iter(possible))
        self.chosen[name] = min(possible, key=lambda way: _seconds(possible[way]))
        return str(self.chosen[name])

    def mailbox(
        self,
        like: Tensor,
        links: Iterable[tuple[int, int]] | None = None,
        depth: int = 4,
        transport: Transport = "auto",
        full: Full = "add",
        receive: Receive | None = None,
    ) -> Mailbox:
        """See `Ports`."""
        how = (links, depth, self._delay, full, lambda: self.wish(), receive)
        port = LocalMailbox(self._workers, like, *how)
        return self._open.add("mailbox", port)

    def _neighbours(self, like: Tensor, mixing: Mixing) -> LocalNeighbours | CommonAverage:
        if mixing.common is None:
            return LocalNeighbours(like, mixing, self._ranks)
        reducer = LocalReducer(self._workers, like, self._ordered)
        placement, dim = Placement.even(self._workers), len(self._like)
        return CommonAverage(reducer, placement, mixing.common, like, dim, self._ordered, ranks=self._ranks)

    def counters(self) -> dict[str, Counter]:
        """The counter of every open port, by name."""
        return self._open.counters()

    def free(self) -> None:
        """Frees all ports."""
        self._open.free()


def _seconds(call: Way) -> float:
    """The median time, after a first call."""
    return statistics.median([timeit.timeit(call, number=1) for _ in range(4)][1:])
