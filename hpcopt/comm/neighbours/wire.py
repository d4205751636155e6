"""Persistent requests that carry rows between ranks, straight from the memory where they lie.

They are made once for a memory and started again in every round. Pieces of one row, and rows between one pair
of ranks, all have the same tag: both ends start them in the same order, and MPI keeps it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from mpi4py import MPI

from hpcopt.comm import gather
from hpcopt.comm.neighbours.schedule import Schedule
from hpcopt.comm.reduce import ring

MEMORIES = 2
"""for so many memories requests are kept, and with them the memories: X and a snapshot"""


class Wire:
    """The requests of one port.

    Args:
        comm: all ranks; not duplicated. Collective.
    """

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm
        self._near = _on_node(comm)
        self._requests: dict[Hashable, dict[int, list[MPI.Prequest]]] = {}

    def start(
        self, memory: Hashable, number: int, schedule: Schedule, rows: dict[int, Any], landing: Any
    ) -> list[MPI.Prequest]:
        """Starts the requests of a schedule, to be waited for.

        Args:
            memory: what tells the memory of ``rows`` and ``landing`` from any other.
            number: of the schedule.
            schedule: this rank's part.
            rows: a buffer (m,) for each row that leaves.
            landing: a buffer (r, m).
        """
        if memory not in self._requests and len(self._requests) == MEMORIES:
            self._release(next(iter(self._requests)))
        of_memory = self._requests.setdefault(memory, {})
        if number not in of_memory:
            of_memory[number] = self._make(schedule, rows, landing)
        for request in of_memory[number]:  # Startall would be free to start them in another order
            request.Start()
        return of_memory[number]

    def release(self) -> None:
        """Frees all requests; none may be active."""
        for memory in list(self._requests):
            self._release(memory)

    def _release(self, memory: Hashable) -> None:
        for requests in self._requests.pop(memory).values():
            for request in requests:
                request.Free()

    def _make(self, schedule: Schedule, rows: dict[int, Any], landing: Any) -> list[MPI.Prequest]:
        """Receives first: what arrives early then finds its place."""
        requests: list[MPI.Prequest] = []
        for rank, slots in schedule.receives.items():
            for slot in slots:
                requests += self._pieces(self._comm.Recv_init, landing[slot], rank)
        for rank, needed in schedule.sends.items():
            for row in needed:
                requests += self._pieces(self._comm.Send_init, rows[row], rank)
        return requests

    def _pieces(self, make: Any, buffer: Any, rank: int) -> list[MPI.Prequest]:
        limit = gather.MAX_MESSAGE if rank in self._near else ring.SEGMENT_BYTES
        return gather.in_pieces(make, buffer, rank, limit=limit)


def _on_node(comm: MPI.Comm) -> frozenset[int]:
    """The ranks on this node. Collective."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    ranks = frozenset(node.allgather(comm.rank))
    node.Free()
    return ranks
