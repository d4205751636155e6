"""An allreduce for slow links between hosts: sums within a node first, then rings that use both directions.

Every node sums its ranks' vectors so that each of its L ranks holds one slice; the ranks with the same slice
on the M nodes then form a ring, in which everybody sends to the right and receives from the left at the same
time (reduce-scatter, then allgather, in M − 1 steps each); at last the slices are put together within the
node. So each host's link carries 2n(M − 1)/M bytes of a vector of n bytes in each direction, however many
ranks it has.

A segment of a step goes on to the right while later ones are on the way. Patarasuk & Yuan, J. Parallel
Distrib. Comput. 69 (2009), show that the ring is bandwidth-optimal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from hpcopt.ground.placement import block, sizes

# below Open MPI's limit for sending over TCP at once: larger messages wait for an answer of the receiver,
# which queues behind what the receiver itself is sending, so that the two directions of a link take turns
SEGMENT_BYTES = 60_000

Vector = NDArray[Any]


class Ring:
    """A plan for allreduces over a communicator whose nodes hold equally many ranks.

    Args:
        comm: all ranks. Collective.
    """

    def __init__(self, comm: MPI.Comm) -> None:
        self._node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self._across = comm.Split(self._node.rank, comm.rank)
        self._landing: dict[tuple[str, np.dtype[Any]], Vector] = {}

    @staticmethod
    def admits(comm: MPI.Comm) -> bool:
        """Whether there are several nodes, all with the same number of ranks. Collective."""
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        least, most = comm.allreduce(node.size, MPI.MIN), comm.allreduce(node.size, MPI.MAX)
        node.Free()
        return bool(least == most < comm.size)

    def allreduce(self, vector: Vector) -> None:
        """Sums a vector over all ranks, in place. Collective."""
        counts = sizes(len(vector), self._node.size)
        own = block(len(vector), self._node.size, self._node.rank)
        piece = vector[own.start : own.stop]
        if self._node.size > 1:
            piece = self._buffer("slice", len(own), vector.dtype)
            self._node.Reduce_scatter(vector, piece, counts)
        self._ring(piece)
        if self._node.size > 1:
            self._node.Allgatherv(piece, [vector, counts])

    def free(self) -> None:
        """Frees the communicators. Collective."""
        self._across.Free()
        self._node.Free()

    def _ring(self, piece: Vector) -> None:
        """Step t passes on what step t - 1 brought: sums in the first M - 1 steps, results in the others."""
        nodes, me = self._across.size, self._across.rank
        chunks = [block(len(piece), nodes, index) for index in range(nodes)]
        views = [piece[chunk.start : chunk.stop] for chunk in chunks]
        steps = 2 * (nodes - 1)
        sends = [self._send(views[me])] if steps else []
        for step in range(steps):
            incoming, adding = views[(me - step - 1) % nodes], step < nodes - 1
            if adding:
                landing = self._buffer(f"chunk {step % 2}", len(chunks[0]), piece.dtype)[: len(incoming)]
            else:  # what was there has to be gone before it is overwritten
                MPI.Request.Waitall(sends[step - nodes + 1])
                landing = incoming
            sends.append(self._pass_on(landing, incoming, adding, last=step == steps - 1))
        for requests in sends:
            MPI.Request.Waitall(requests)

    def _pass_on(self, landing: Vector, chunk: Vector, adding: bool, last: bool) -> list[MPI.Request]:
        """Receives a chunk from the left; each segment goes to the right as soon as it is complete."""
        left = (self._across.rank - 1) % self._across.size
        segments = self._segments(chunk)
        receives = [self._across.Irecv(landing[segment], left) for segment in segments]
        sends: list[MPI.Request] = []
        for segment, receive in zip(segments, receives, strict=True):
            receive.Wait()
            if adding:
                chunk[segment] += landing[segment]
            if not last:
                sends += self._send(chunk[segment])
        return sends

    def _send(self, vector: Vector) -> list[MPI.Request]:
        right = (self._across.rank + 1) % self._across.size
        return [self._across.Isend(vector[segment], right) for segment in self._segments(vector)]

    @staticmethod
    def _segments(vector: Vector) -> list[slice]:
        step = SEGMENT_BYTES // vector.itemsize
        return [slice(at, at + step) for at in range(0, len(vector), step)]

    def _buffer(self, use: str, size: int, dtype: np.dtype[Any]) -> Vector:
        key = (use, dtype)
        if key not in self._landing or len(self._landing[key]) < size:
            self._landing[key] = np.empty(size, dtype)
        return self._landing[key][:size]
