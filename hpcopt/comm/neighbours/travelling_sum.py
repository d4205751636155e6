"""A sum over the ranks that travels while they compute."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI
from torch import Tensor

from hpcopt.comm import gather
from hpcopt.comm.neighbours.poller import Poller
from hpcopt.comm.staging import Staging


class TravellingSum:
    """`hpcopt.comm.neighbours.common_average.Carrier` over a communicator, one sum at a time.

    Args:
        comm: duplicated; the caller's stays as it is. Collective.
        staging: of the vectors' device. They go through host memory always: MPI libraries add up in GPU
            memory only where a collective waits.
    """

    def __init__(self, comm: MPI.Comm, staging: Staging) -> None:
        self._comm = comm.Dup()
        self._staging = staging.another(direct=False)
        self._pending: tuple[Poller, Any, Tensor] | None = None

    def start(self, part: Tensor) -> None:
        """See `Carrier`. Collective."""
        wire = self._staging.out(part)
        step = gather.MAX_MESSAGE // wire.dtype.itemsize
        pieces = [wire[at : at + step] for at in range(0, len(wire), step)]
        poller = Poller([self._comm.Iallreduce(MPI.IN_PLACE, piece) for piece in pieces])
        self._pending = poller, wire, part

    def finish(self) -> Tensor:
        """See `Carrier`. Collective."""
        assert self._pending is not None, "nothing was sent off"
        poller, wire, part = self._pending
        poller.finish()
        self._staging.back(wire, part)
        self._pending = None
        return part

    def free(self) -> None:
        """See `Carrier`. Collective."""
        self._comm.Free()
