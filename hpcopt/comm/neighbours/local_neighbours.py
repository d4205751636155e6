"""The in-process twin of the `Neighbours` port."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpcopt.comm.neighbours.schedule import schedule, travelling
from hpcopt.comm.ports import Counter
from hpcopt.ground.placement import Placement
from hpcopt.math.averages import Averages

if TYPE_CHECKING:
    from hpcopt.math.mixing import Mixing


class LocalNeighbours:
    """`Neighbours` for one process that holds all workers; always term by term.

    Args:
        like: a vector (m,) of the rows' dtype.
        mixing: the matrices W, (N, N).
        ranks: count bytes as if the workers lived on so many ranks (the mean over them).
    """

    def __init__(self, like: Tensor, mixing: Mixing, ranks: int = 1) -> None:
        self._schedules = [schedule(W, Placement.even(mixing.N)) for W in mixing.matrices]
        self._rows = [travelling(W, Placement.even(mixing.N, ranks)) / ranks for W in mixing.matrices]
        self._averages = [Averages(one.terms, 0, like) for one in self._schedules]
        self._nothing = like.new_empty((0, len(like)))
        self._pending: tuple[Tensor, int] | None = None
        self.counter = Counter()

    def mix(self, X: Tensor, round: int) -> None:
        """See `Neighbours`."""
        start = time.perf_counter()
        self._averages[self._at(round)].replace(X, self._nothing[:, : X.shape[1]])
        self._count(start, X, round)

    def begin(self, X: Tensor, round: int) -> Tensor:
        """See `Neighbours`."""
        assert self._pending is None, "a mix has begun and was not finished"
        snapshot = X.clone(memory_format=torch.contiguous_format)
        self._pending = snapshot, round
        return snapshot

    def finish(self, X: Tensor, snapshot: Tensor) -> None:
        """See `Neighbours`."""
        start = time.perf_counter()
        assert self._pending is not None, "nothing has begun"
        begun, round = self._pending
        assert snapshot is begun, "finish takes what begin gave"
        self._averages[self._at(round)].add_change(X, snapshot, self._nothing[:, : X.shape[1]])
        self._pending = None
        self._count(start, X, round)

    def free(self) -> None:
        """See `Neighbours`."""

    def _at(self, round: int) -> int:
        return round % len(self._schedules)

    def _count(self, since: float, X: Tensor, round: int) -> None:
        nbytes = X.shape[1] * X.element_size()
        rows, fan_out = self._rows[self._at(round)], self._schedules[self._at(round)].fan_out
        self.counter.add(since, nbytes * rows, nbytes * fan_out, nbytes * len(X))
