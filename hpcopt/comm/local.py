"""The ports' in-process twins: all N workers here, no MPI. The oracle that parallel runs are tested against."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from hpcopt.comm.blocks import block
from hpcopt.comm.ports import Counter, allreduce_bytes, gather_bytes


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
        self.counter.passes += 1
        return self.scalars(part)

    def scalars(self, values: Tensor) -> Tensor:
        """See `Reducer`."""
        with self.counter.measure():
            total = self._total(values)
        nbytes = total.numel() * total.element_size()
        self.counter.bytes += allreduce_bytes(nbytes, self._ranks)
        self.counter.bytes_workers += self._workers * allreduce_bytes(nbytes, self._workers)
        return total

    def reduce_scatter(self, part: Tensor) -> Tensor:
        """See `Reducer`."""
        with self.counter.measure():
            total = self._total(part)
        self._count_half(total)
        return total

    def allgather(self, piece: Tensor, size: int) -> Tensor:
        """See `Reducer`."""
        with self.counter.measure():
            assert len(piece) == size
        self._count_half(piece)
        return piece

    def free(self) -> None:
        """See `Reducer`."""

    def _total(self, part: Tensor) -> Tensor:
        return part if self.form == "sum" else sum_in_order(part)

    def _count_half(self, whole: Tensor) -> None:
        nbytes = whole.numel() * whole.element_size()
        self.counter.passes += 0.5
        self.counter.bytes += gather_bytes(nbytes, self._ranks)
        self.counter.bytes_workers += self._workers * gather_bytes(nbytes, self._workers)


def sum_in_order(rows: Tensor) -> Tensor:
    """Σ rows, added one after the other: the same bits however the columns are split."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total


