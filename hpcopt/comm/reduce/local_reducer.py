"""The in-process twin of the `Reducer` port."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from hpcopt.comm.ports import VERBS, Counter, Gradients
from hpcopt.comm.reduce.contribution import Buffer, sum_in_order
from hpcopt.costs.volumes import allreduce_bytes, gather_bytes


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
        sum = partial(self._sum, verb="sum")
        return Buffer(size, self._like, self._workers, self._ordered, sum, self._scatter)

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

    def allgather(self, piece: Tensor, size: int, by_worker: bool = False) -> Tensor:
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
        total = self._total(part).clone()
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
