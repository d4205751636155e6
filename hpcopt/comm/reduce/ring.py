"""Sums for slow links between hosts: within a node first, then rings that use both directions.

The L ranks with the same place on the M nodes form a ring, in which everybody sends to the right and
receives from the left at the same time, in M − 1 steps. In a reduce-scatter, what a ring carries was summed
within the node before; in an allgather, it is shared within the node afterwards. So each host's link carries
n(M − 1)/M bytes of a vector of n bytes in each direction, however many ranks it has; an allreduce is both.

A segment of a step goes on to the right while later ones are on the way. Patarasuk & Yuan, J. Parallel
Distrib. Comput. 69 (2009), show that the ring is bandwidth-optimal.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from hpcopt.ground.placement import sizes

# below Open MPI's limit for sending over TCP at once: larger messages wait for an answer of the receiver,
# which queues behind what the receiver itself is sending, so that the two directions of a link take turns
SEGMENT_BYTES = 60_000

Vector = NDArray[Any]


class Ring:
    """A plan for sums over a communicator whose nodes hold equally many ranks.

    A vector lies in P parts, ordered by node and then by place on it; where the ranks of a node do not follow
    each other, those who want another order pay for a copy.

    Args:
        comm: all ranks. Collective.
        node: those of this node, which the ring then frees; as MPI says if None.
    """

    def __init__(self, comm: MPI.Comm, node: MPI.Comm | None = None) -> None:
        self._node = node or comm.Split_type(MPI.COMM_TYPE_SHARED)
        self._across = comm.Split(self._node.rank, self._node.bcast(comm.rank))
        nodes = self._across.allgather(self._node.allgather(comm.rank))
        self._order = [rank for node in nodes for rank in node]
        self._in_order = self._order == list(range(comm.size))
        self._memory: dict[tuple[str, np.dtype[Any]], Vector] = {}

    @staticmethod
    def admits(comm: MPI.Comm) -> bool:
        """Whether there are several nodes, all with the same number of ranks. Collective."""
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        least, most = comm.allreduce(node.size, MPI.MIN), comm.allreduce(node.size, MPI.MAX)
        node.Free()
        return bool(least == most < comm.size)

    def allreduce(self, vector: Vector) -> None:
        """Sums a vector over all ranks, in place. Collective."""
        counts = sizes(len(vector), len(self._order))
        chunks = self._chunks(vector, counts)
        self._scatter(vector, counts, chunks)
        self._gather(chunks, vector, counts)

    def reduce_scatter(self, vector: Vector, counts: Sequence[int]) -> Vector:
        """This rank's part of a sum over all ranks, until the next call. Collective.

        Args:
            vector: (Σ counts,), overwritten.
            counts: how long the part of every rank is, (P,), one after the other in ``vector``.
        """
        if not self._in_order:
            parts = np.split(vector, np.cumsum(counts)[:-1])
            vector, counts = np.concatenate([parts[r] for r in self._order]), [counts[r] for r in self._order]
        chunks = self._chunks(vector, counts)
        self._scatter(vector, counts, chunks)
        return chunks[self._across.rank]

    def allgather(self, piece: Vector, whole: Vector, counts: Sequence[int]) -> None:
        """Puts the ranks' pieces one after the other into ``whole``; arguments as above. Collective."""
        target = whole if self._in_order else np.empty_like(whole)
        ordered = [counts[rank] for rank in self._order]
        chunks = self._chunks(target, ordered)
        chunks[self._across.rank][:] = piece
        self._gather(chunks, target, ordered)
        if not self._in_order:
            parts = np.split(target, np.cumsum(ordered)[:-1])
            np.concatenate([parts[self._order.index(rank)] for rank in range(len(counts))], out=whole)

    def free(self) -> None:
        """Frees the communicators. Collective."""
        self._across.Free()
        self._node.Free()

    def _scatter(self, vector: Vector, counts: Sequence[int], chunks: list[Vector]) -> None:
        """Sums into the chunk of this node; a step sums one within the nodes and adds what has come."""
        nodes, sends = self._nodes(vector, counts), list[MPI.Request]()
        for step in range(len(nodes)):
            index = (self._across.rank - 1 - step) % len(nodes)
            landing = self._buffer("landing", len(chunks[index]), vector.dtype)
            receives = self._receives(landing) if step else []
            if self._node.size > 1:
                self._node.Reduce_scatter(nodes[index][0], chunks[index], nodes[index][1])
            sends += self._pass_on(chunks[index], receives, landing, last=step == len(nodes) - 1)
        MPI.Request.Waitall(sends)

    def _gather(self, chunks: list[Vector], vector: Vector, counts: Sequence[int]) -> None:
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
        self, chunk: Vector, receives: list[MPI.Request], adding: Vector | None, last: bool
    ) -> list[MPI.Request]:
        """Each segment goes to the right as soon as it is complete: at once, or when it has come."""
        right, sends = (self._across.rank + 1) % self._across.size, list[MPI.Request]()
        for segment, receive in zip_longest(self._segments(chunk), receives):
            if receive is not None:
                receive.Wait()
                if adding is not None:
                    chunk[segment] += adding[segment]
            if not last:
                sends.append(self._across.Isend(chunk[segment], right))
        return sends

    def _receives(self, landing: Vector) -> list[MPI.Request]:
        left = (self._across.rank - 1) % self._across.size
        return [self._across.Irecv(landing[segment], left) for segment in self._segments(landing)]

    def _chunks(self, vector: Vector, counts: Sequence[int]) -> list[Vector]:
        """What this rank has of the parts of every node: in the vector where it is alone, else beside it."""
        mine = counts[self._node.rank :: self._node.size]
        if self._node.size > 1:
            vector = self._buffer("chunks", sum(mine), vector.dtype)
        return np.split(vector, np.cumsum(mine)[:-1])

    def _nodes(self, vector: Vector, counts: Sequence[int]) -> list[tuple[Vector, Sequence[int]]]:
        """The parts of every node's ranks, which lie one after the other, and how long each of them is."""
        L, ends = self._node.size, np.cumsum([0, *counts]).tolist()
        firsts = range(0, len(counts), L)
        return [(vector[ends[at] : ends[at + L]], counts[at : at + L]) for at in firsts]

    @staticmethod
    def _segments(vector: Vector) -> list[slice]:
        step = SEGMENT_BYTES // vector.itemsize
        return [slice(at, at + step) for at in range(0, len(vector), step)]

    def _buffer(self, use: str, size: int, dtype: np.dtype[Any]) -> Vector:
        key = (use, dtype)
        if key not in self._memory or len(self._memory[key]) < size:
            self._memory[key] = np.empty(size, dtype)
        return self._memory[key][:size]
