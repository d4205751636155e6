"""Persistent requests that carry rows between ranks, straight from the memory where they lie.

They are made once for a memory and started again in every round. Pieces of one row, and rows between one pair
of ranks, all have the same tag: both ends start them in the same order, that of the rows, and MPI keeps it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

from mpi4py import MPI

from hpcopt.comm import gather
from hpcopt.comm.neighbours.schedule import Schedule
from hpcopt.comm.reduce import ring

MEMORIES = 2
"""for so many memories requests are kept, and with them the memories: X and a snapshot"""


class Requests(NamedTuple):
    """What carries a schedule's rows.

    Attributes:
        receives: of each cut of each slot of the landing, in their order.
        sends: of each cut of each row that leaves, in their order, to all who need it.
    """

    receives: list[list[MPI.Prequest]]
    sends: list[list[MPI.Prequest]]

    @property
    def all(self) -> list[MPI.Prequest]:
        """All of them."""
        return [request for group in (*self.receives, *self.sends) for request in group]


class Wire:
    """The requests of one port.

    Args:
        comm: all ranks; not duplicated. Collective.
    """

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm
        self._near = _on_node(comm)
        self._requests: dict[Hashable, dict[int, Requests]] = {}

    def start(
        self,
        memory: Hashable,
        number: int,
        schedule: Schedule,
        cuts: Sequence[slice],
        rows: Iterable[Any],
        landing: Any,
    ) -> Requests:
        """Starts the requests of a schedule, to be waited for.

        Args:
            memory: what tells the memory of ``rows`` and ``landing`` from any other.
            number: of the schedule.
            schedule: this rank's part.
            cuts: of every row, the same on all ranks.
            rows: for each row that leaves, for each cut, its buffer, once its numbers are there.
            landing: a buffer (r, m).
        """
        if memory not in self._requests and len(self._requests) == MEMORIES:
            self._release(next(iter(self._requests)))
        of_memory = self._requests.setdefault(memory, {})
        if number not in of_memory:
            of_memory[number] = Requests(self._receives(schedule, cuts, landing), [])
        found = of_memory[number]
        for group in found.receives:  # first: what arrives early then finds its place
            _start(group)
        for at, buffer in enumerate(rows):
            if at == len(found.sends):
                found.sends.append(self._sends(schedule, schedule.leaving[at // len(cuts)], buffer))
            _start(found.sends[at])
        return found

    def release(self) -> None:
        """Frees all requests; none may be active."""
        for memory in list(self._requests):
            self._release(memory)

    def _release(self, memory: Hashable) -> None:
        for requests in self._requests.pop(memory).values():
            for request in requests.all:
                request.Free()

    def _receives(self, schedule: Schedule, cuts: Sequence[slice], landing: Any) -> list[list[MPI.Prequest]]:
        return [
            self._pieces(self._comm.Recv_init, landing[slot][cut], rank)
            for rank, slots in schedule.receives.items()
            for slot in slots
            for cut in cuts
        ]

    def _sends(self, schedule: Schedule, row: int, buffer: Any) -> list[MPI.Prequest]:
        ranks = [rank for rank, needed in schedule.sends.items() if row in needed]
        return [one for rank in ranks for one in self._pieces(self._comm.Send_init, buffer, rank)]

    def _pieces(self, make: Any, buffer: Any, rank: int) -> list[MPI.Prequest]:
        limit = gather.MAX_MESSAGE if rank in self._near else ring.SEGMENT_BYTES
        return gather.in_pieces(make, buffer, rank, limit=limit)


def _start(requests: list[MPI.Prequest]) -> None:
    for request in requests:  # Startall would be free to start them in another order
        request.Start()


def _on_node(comm: MPI.Comm) -> frozenset[int]:
    """The ranks on this node. Collective."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    ranks = frozenset(node.allgather(comm.rank))
    node.Free()
    return ranks
