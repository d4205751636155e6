"""Sums for slow links between hosts: within a node first, then rings that use both directions.

The L ranks with the same place on the M nodes form a ring, in which everybody sends to the right and
receives from the left at the same time, in M − 1 steps. In a reduce-scatter, what a ring carries was summed
within the node before; in an allgather, it is shared within the node afterwards. So each host's link carries
n(M − 1)/M bytes of a vector of n bytes in each direction, however many ranks it has; an allreduce is both.

A segment of a step goes on to the right while later ones are on the way. Patarasuk & Yuan, J. Parallel
Distrib. Comput. 69 (2009), show that the ring is bandwidth-optimal.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from itertools import accumulate, pairwise, zip_longest

from mpi4py import MPI

from hpcopt.comm import gather
from hpcopt.comm.reduce.pieces import Pieces
from hpcopt.comm.wires import Wire, empty, settle
from hpcopt.ground.placement import sizes

# below Open MPI's limit for sending over TCP at once: larger messages wait for an answer of the receiver,
# which queues behind what the receiver itself is sending, so that the two directions of a link take turns
SEGMENT_BYTES = 60_000
# what a node sums in a step of the ring, if it is long, and in pieces of how many bytes then
LONG_BYTES, PIECE_BYTES = 2 << 20, 1 << 20


class Ring:
    """A `hpcopt.comm.reduce.ways.Plan` for a communicator whose nodes hold equally many ranks.

    A vector lies in P parts, ordered by node and then by place on it; where the ranks of a node do not follow
    each other, those who want another order pay for a copy.

    Args:
        comm: all ranks. Collective.
        node: those of this node, which the ring then frees; as MPI says if None.
    """

    step = sys.maxsize  # its segments follow each other as they are

    def __init__(self, comm: MPI.Comm, node: MPI.Comm | None = None) -> None:
        self._node = node or comm.Split_type(MPI.COMM_TYPE_SHARED)
        self._whole, self._pieces = Pieces(self._node), Pieces(self._node, PIECE_BYTES)
        self._across = comm.Split(self._node.rank, self._node.bcast(comm.rank))
        nodes = self._across.allgather(self._node.allgather(comm.rank))
        self._order = [rank for node in nodes for rank in node]
        self._in_order = self._order == list(range(comm.size))
        self._memory: dict[Hashable, Wire] = {}

    @staticmethod
    def admits(comm: MPI.Comm) -> bool:
        """Whether there are several nodes, all with the same number of ranks. Collective."""
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        least, most = comm.allreduce(node.size, MPI.MIN), comm.allreduce(node.size, MPI.MAX)
        node.Free()
        return bool(least == most < comm.size)

    def allreduce(self, vector: Wire) -> None:
        """Sums a vector over all ranks, in place. Collective."""
        counts = sizes(len(vector), len(self._order))
        chunks = self._chunks(vector, counts)
        self._scatter(vector, counts, chunks)
        self._gather(chunks, vector, counts)

    def reduce_scatter(self, vector: Wire, landing: Wire, counts: Sequence[int]) -> None:
        """Puts this rank's part of a sum over all ranks into ``landing``. Collective.

        Args:
            vector: (Σ counts,), overwritten.
            landing: (counts[rank],).
            counts: how long the part of every rank is, (P,), one after the other in ``vector``.
        """
        if not self._in_order:
            parts = _split(vector, counts)
            counts = [counts[rank] for rank in self._order]
            vector = self._buffer("ordered", len(vector), vector)
            _join([parts[rank] for rank in self._order], vector)
        chunks = self._chunks(vector, counts)
        self._scatter(vector, counts, chunks)
        landing[:] = chunks[self._across.rank]

    def allgather(self, piece: Wire, whole: Wire, counts: Sequence[int]) -> None:
        """Puts the ranks' pieces one after the other into ``whole``; arguments as above. Collective."""
        target = whole if self._in_order else self._buffer("ordered", len(whole), whole)
        ordered = [counts[rank] for rank in self._order]
        chunks = self._chunks(target, ordered)
        chunks[self._across.rank][:] = piece
        settle(target)
        self._gather(chunks, target, ordered)
        if not self._in_order:
            parts = _split(target, ordered)
            _join([parts[self._order.index(rank)] for rank in range(len(counts))], whole)

    def free(self) -> None:
        """Frees the communicators. Collective."""
        self._across.Free()
        self._node.Free()

    def _scatter(self, vector: Wire, counts: Sequence[int], chunks: list[Wire]) -> None:
        """Sums into the chunk of this node; a step sums one within the nodes and adds what has come."""
        nodes, sends = self._nodes(vector, counts), list[MPI.Request]()
        long = len(nodes[0][0]) * vector.dtype.itemsize >= LONG_BYTES
        within = self._pieces if long else self._whole
        for step in range(len(nodes)):
            index = (self._across.rank - 1 - step) % len(nodes)
            landing = self._buffer("landing", len(chunks[index]), vector)
            receives = self._receives(landing) if step else []
            if self._node.size > 1:
                within.reduce_scatter(nodes[index][0], chunks[index], nodes[index][1])
            sends += self._pass_on(chunks[index], receives, landing, last=step == len(nodes) - 1)
        MPI.Request.Waitall(sends)

    def _gather(self, chunks: list[Wire], vector: Wire, counts: Sequence[int]) -> None:
        """The chunks of all nodes from their owners; a node shares one while the next is on the way."""
        nodes, sends = self._nodes(vector, counts), list[MPI.Request]()
        for step in range(len(nodes)):
            index = (self._across.rank - step) % len(nodes)
            receives = self._receives(chunks[index]) if step else []
            sends += self._pass_on(chunks[index], receives, None, last=step == len(nodes) - 1)
            if self._node.size > 1:
                self._node.Allgatherv(chunks[index], list(nodes[index]))
        MPI.Request.Waitall(sends)

    def _pass_on(
        self, chunk: Wire, receives: list[MPI.Request], adding: Wire | None, last: bool
    ) -> list[MPI.Request]:
        """Each segment goes to the right as soon as it is complete: at once, or when it has come."""
        right, sends = (self._across.rank + 1) % self._across.size, list[MPI.Request]()
        for segment, receive in zip_longest(self._segments(chunk), receives):
            if receive is not None:
                receive.Wait()
                if adding is not None:
                    chunk[segment] += adding[segment]
                    settle(chunk)
            if not last:
                sends.append(self._across.Isend(chunk[segment], right))
        return sends

    def _receives(self, landing: Wire) -> list[MPI.Request]:
        left = (self._across.rank - 1) % self._across.size
        return [self._across.Irecv(landing[segment], left) for segment in self._segments(landing)]

    def _chunks(self, vector: Wire, counts: Sequence[int]) -> list[Wire]:
        """What this rank has of the parts of every node: in the vector where it is alone, else beside it."""
        mine = counts[self._node.rank :: self._node.size]
        if self._node.size > 1:
            vector = self._buffer("chunks", sum(mine), vector)
        return _split(vector, mine)

    def _nodes(self, vector: Wire, counts: Sequence[int]) -> list[tuple[Wire, Sequence[int]]]:
        """The parts of every node's ranks, which lie one after the other, and how long each of them is."""
        L, ends = self._node.size, [0, *accumulate(counts)]
        firsts = range(0, len(counts), L)
        return [(vector[ends[at] : ends[at + L]], counts[at : at + L]) for at in firsts]

    @staticmethod
    def _segments(vector: Wire) -> list[slice]:
        return gather.cuts(len(vector), SEGMENT_BYTES // vector.dtype.itemsize)

    def _buffer(self, use: str, size: int, like: Wire) -> Wire:
        key = (use, like.dtype)
        if key not in self._memory or len(self._memory[key]) < size:
            self._memory[key] = empty(size, like)
        return self._memory[key][:size]


def _split(vector: Wire, counts: Sequence[int]) -> list[Wire]:
    """The parts that lie in a vector one after the other."""
    return [vector[a:b] for a, b in pairwise([0, *accumulate(counts)])]


def _join(parts: Sequence[Wire], into: Wire) -> None:
    """Puts parts one after the other."""
    for part, place in zip(parts, _split(into, [len(part) for part in parts]), strict=True):
        place[:] = part
    settle(into)
