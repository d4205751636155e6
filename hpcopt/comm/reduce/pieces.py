"""Sums by MPI's own calls, of vectors whole or in pieces.

Within a host some libraries sum a long vector much slower in one call than in pieces that stay in a core's
cache: on two ranks, Open MPI 5 needed 13 to 22 ms for an allreduce of 45 MB and 6 to 8 ms for its pieces, 39
to 45 ms for a reduce-scatter and 7 to 9 ms where ranks exchange pieces and add them up themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mpi4py import MPI

from hpcopt.comm import gather
from hpcopt.comm.wires import Wire, empty, settle

WHOLE = sys.maxsize


class Pieces:
    """See `hpcopt.comm.reduce.ways.Plan`.

    The order of a reduce-scatter's sums does not depend on pieces; that of an allreduce is MPI's business.

    Args:
        comm: all ranks; not duplicated.
        step: bytes of a piece.
    """

    def __init__(self, comm: MPI.Comm, step: int = WHOLE) -> None:
        self._comm, self._step, self._ranks = comm, step, comm.size

    @property
    def step(self) -> int:
        """See `hpcopt.comm.reduce.ways.Plan`."""
        return min(self._step, gather.MAX_MESSAGE)

    def allreduce(self, vector: Wire) -> None:
        """See `hpcopt.comm.reduce.ways.Plan`."""
        step = self.step // vector.dtype.itemsize
        if vector.shape[0] <= step:  # the usual case; slicing costs a microsecond
            self._comm.Allreduce(MPI.IN_PLACE, vector)
            return
        for cut in gather.cuts(vector.shape[0], step):
            self._comm.Allreduce(MPI.IN_PLACE, vector[cut])

    def reduce_scatter(self, vector: Wire, landing: Wire, counts: Sequence[int]) -> None:
        """See `hpcopt.comm.reduce.ways.Plan`; the vector stays as it is."""
        itemsize, me = vector.dtype.itemsize, self._comm.rank
        if self._step == WHOLE and vector.shape[0] * itemsize <= gather.MAX_MESSAGE:
            self._comm.Reduce_scatter(vector, landing, counts)
            return
        start = sum(counts[:me])
        for parts in gather.steps(counts, self.step // itemsize):
            own = parts[me]
            self._exchange(vector, parts, landing[own.start - start : own.stop - start])

    def allgather(self, piece: Wire, whole: Wire, counts: Sequence[int]) -> None:
        """See `hpcopt.comm.reduce.ways.Plan`; MPI's own call needs no pieces."""
        gather.allgather(self._comm, piece, whole, counts)

    def free(self) -> None:
        """See `hpcopt.comm.reduce.ways.Plan`."""

    def _exchange(self, vector: Wire, parts: list[slice], landing: Wire) -> None:
        """Adds up this rank's part: its own and that of the rank before, of the one before that, …"""
        me = self._comm.rank
        own = vector[parts[me]]
        if self._ranks == 1:
            landing[:] = own
            return
        other = landing
        for step in range(1, self._ranks):
            to, source = (me + step) % self._ranks, (me - step) % self._ranks
            self._comm.Sendrecv(vector[parts[to]], to, 0, other, source, 0)
            if step == 1:
                landing += own
                other = empty(len(landing), vector) if self._ranks > 2 else landing
            else:
                landing += other
            settle(landing)
