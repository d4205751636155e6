"""The ranks of a run together, over MPI."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TypeVar

import numpy as np
from crc32c import crc32c
from mpi4py import MPI
from numpy.typing import NDArray

from hpcopt.comm.gather import gather_rows
from hpcopt.control.agree import agreed

T = TypeVar("T")
Floats = NDArray[np.float64]


class MPIRanks:
    """`hpcopt.engine.ranks.Ranks` of a communicator."""

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm, self.rank, self.count = comm, comm.rank, comm.size

    def each(self, thing: T) -> list[T]:
        """See `Ranks`."""
        return self._comm.allgather(thing)

    def rows(self, rows: Floats) -> Floats:
        """See `Ranks`."""
        return gather_rows(self._comm, rows)

    def sums(self, values: Floats) -> Floats:
        """See `Ranks`."""
        return self._reduced(values, MPI.SUM)

    def largest(self, values: Floats) -> Floats:
        """See `Ranks`."""
        return self._reduced(values, MPI.MAX)

    def different(self, numbers: NDArray[np.generic]) -> list[int]:
        """See `Ranks`."""
        digests = self.each(crc32c(np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data))
        return [rank for rank, digest in enumerate(digests) if digest != digests[0]]

    def agreed(self) -> AbstractContextManager[None]:
        """See `Ranks`."""
        return agreed(self._comm)

    def _reduced(self, values: Floats, operation: MPI.Op) -> Floats:
        result = values.copy()
        self._comm.Allreduce(MPI.IN_PLACE, result, operation)
        return result
