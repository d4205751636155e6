"""The `Reducer` port over MPI."""

from __future__ import annotations

import time
from typing import Any

import torch
from mpi4py import MPI
from torch import Tensor

from hpcopt.comm import gather
from hpcopt.comm.ports import VERBS, Counter, Gradients
from hpcopt.comm.reduce.buckets import BucketedSum
from hpcopt.comm.reduce.choice import Reduction
from hpcopt.comm.reduce.contribution import Buffer, sum_in_order
from hpcopt.comm.reduce.ring import Ring
from hpcopt.comm.staging import Staging
from hpcopt.costs.volumes import allreduce_bytes, gather_bytes, ordered_bytes
from hpcopt.ground.placement import Placement, block, sizes

# below this, the ring's latency of 2(M - 1) steps costs more than the bytes that it saves
RING_ELEMENTS = 1 << 14


class MPIReducer:
    """`Reducer` over a communicator.

    Its ways of a sum: ``"mpi"``, MPI's own allreduce of the ranks' partial sums, in place and without
    copies; ``"ring"``, the same between hosts with slow links (`hpcopt.comm.reduce.ring`), where long vectors
    are reduce-scattered and gathered so, too; ``"ordered"``, an exchange that gives every rank all workers'
    rows for its slice of the columns, so that sums run in the order of the workers and come out bit-identical
    on any number of ranks (N/2 times the bytes).

    Args:
        comm: duplicated; the caller's stays as it is. Collective.
        placement: of the workers on the ranks of ``comm``.
        staging: how GPU tensors reach MPI.
        like: a vector (d,) like the model.
        reduction: how sums travel, see `hpcopt.comm.reduce.choice.choose`.
        overlap: gradients travel while they are being computed (CPU tensors only).
    """

    def __init__(
        self,
        comm: MPI.Comm,
        placement: Placement,
        staging: Staging,
        like: Tensor,
        reduction: Reduction = "mpi",
        overlap: bool = False,
    ) -> None:
        self._comm = comm.Dup()
        self._placement, self._like = placement, like
        # small sums take microseconds: what is counted of them must not be looked up again and again
        self._dim, self._n, self._workers, self._ranks = len(like), placement.n, placement.total, comm.size
        self._ordered = reduction == "ordered"
        self._overlap = overlap and not self._ordered and staging.device.type == "cpu"
        self._ring = Ring(self._comm) if reduction == "ring" else None
        # the ring adds in host memory, also where MPI takes the GPU's
        self._staging = Staging(staging.device, aware=False) if self._ring is not None else staging
        self._gradient: Buffer | None = None
        self.counters = {verb: Counter() for verb in VERBS}

    def gradient(self, problem: Gradients, x: Tensor, draw: Any = None) -> Tensor:
        """See `Reducer`. Collective."""
        if self._gradient is None:
            self._gradient = self._buffer(self._dim)
        if self._overlap:
            return self._gradient_in_parts(self._gradient, problem, x, draw)
        return self._gradient.add_gradients(problem, x, draw).sum()

    def contribution(self, size: int) -> Buffer:
        """See `Reducer`."""
        return self._buffer(size)

    def sum(self, rows: Tensor) -> Tensor:
        """See `Reducer`. Collective."""
        return self.total(self._own_part(rows), "sum")

    def scalars(self, rows: Tensor) -> Tensor:
        """See `Reducer`. Collective."""
        return self.total(self._own_part(rows), "scalars")

    def slices(self, values: Tensor) -> Tensor:
        """See `Reducer`. Collective."""
        start = time.perf_counter()
        nbytes = values.numel() * values.element_size()
        if self._ordered:  # the order of MPI's sum is its own, and may be another one tomorrow
            pieces = self._gather(values, [len(values)] * self._ranks)
            total = sum_in_order(pieces.view(self._ranks, -1))
        else:
            total = self._allreduce(values.clone())
        sent = allreduce_bytes(nbytes, self._ranks)
        self._count("slices", start, sent, nbytes, allreduce_bytes(nbytes, self._workers), 0.0)
        return total

    def own(self, size: int) -> range:
        """See `Reducer`."""
        return block(size, self._ranks, self._comm.rank)

    def allgather(self, piece: Tensor, size: int, by_worker: bool = False) -> Tensor:
        """See `Reducer`. Collective."""
        start = time.perf_counter()
        counts = sizes(size, self._workers if by_worker else self._ranks)
        if by_worker:
            counts = [sum(counts[w] for w in self._placement.at(rank)) for rank in range(self._ranks)]
        whole = self._gather(piece, counts)
        nbytes = size * piece.element_size()
        sent, workers = (gather_bytes(nbytes, parts) for parts in (self._ranks, self._workers))
        payload = piece.numel() * piece.element_size()
        self._count("gather", start, sent, payload, workers, self._passes(size) / 2)
        return whole

    def free(self) -> None:
        """See `Reducer`. Collective."""
        if self._ring is not None:
            self._ring.free()
        self._comm.Free()

    # --- sums -----------------------------------------------------------------------------------------------

    def _buffer(self, size: int) -> Buffer:
        return Buffer(size, self._like, self._n, self._ordered, self.total, self._scatter)

    def _own_part(self, rows: Tensor) -> Tensor:
        return rows.contiguous() if self._ordered else rows.sum(0)

    def _gradient_in_parts(self, part: Buffer, problem: Gradients, x: Tensor, draw: Any) -> Tensor:
        """The gradient, whose parts travel as they become ready; its time is what is left to wait for."""
        parts = BucketedSum(part.memory.numpy(), self._allreduce_wire)
        part.add_gradients(problem, x, draw, parts.ready)
        start = time.perf_counter()
        parts.finish()
        total = part.take()
        self._count_sum("sum", start, total)
        return total

    def total(self, part: Tensor, verb: str = "sum") -> Tensor:
        """The sum of all ranks' (m,), in place, or of all workers' (n, m) in their order. Collective."""
        start = time.perf_counter()
        if self._ordered:
            total = self._gather(self._scatter_rows(part), sizes(part.shape[-1], self._ranks))
        else:
            total = self._allreduce(part)
        self._count_sum(verb, start, total)
        return total

    def _scatter(self, part: Tensor) -> Tensor:
        start = time.perf_counter()
        piece = self._scatter_rows(part) if self._ordered else self._reduce_scatter(part)
        nbytes = part.shape[-1] * part.element_size()
        rows = self._n if self._ordered else 1  # the ordered exchange sends every worker's row
        sent = rows * gather_bytes(nbytes, self._ranks)
        workers = gather_bytes(nbytes, self._workers)
        self._count("scatter", start, sent, nbytes, workers, self._passes(part.shape[-1]) / 2)
        return piece

    # --- counting -------------------------------------------------------------------------------------------

    def _count_sum(self, verb: str, since: float, total: Tensor) -> None:
        size = total.numel()
        nbytes = size * total.element_size()
        # the ordered exchange sends every worker's row
        sent = ordered_bytes(nbytes, self._ranks, self._n if self._ordered else 1)
        passes = 0.0 if verb == "scalars" or size != self._dim else 1.0
        workers = self._n * allreduce_bytes(nbytes, self._workers)
        self.counters[verb].add(since, sent, workers, nbytes, passes)

    def _count(
        self, verb: str, since: float, sent: float, payload: float, of_worker: float, passes: float
    ) -> None:
        self.counters[verb].add(since, sent, self._n * of_worker, payload, passes)

    def _passes(self, size: int) -> float:
        return float(size == self._dim)

    # --- MPI ------------------------------------------------------------------------------------------------

    def _allreduce(self, part: Tensor) -> Tensor:
        wire = self._staging.out(part)
        self._allreduce_wire(wire)
        self._staging.back(wire, part)
        return part

    def _allreduce_wire(self, wire: Any) -> None:
        step = gather.MAX_MESSAGE // wire.dtype.itemsize
        ring = self._ring_for(wire.shape[0])
        if ring is not None:
            ring.allreduce(wire)
        elif wire.shape[0] <= step:  # the usual case; slicing costs a microsecond
            self._comm.Allreduce(MPI.IN_PLACE, wire)
        else:
            for start in range(0, wire.shape[0], step):
                self._comm.Allreduce(MPI.IN_PLACE, wire[start : start + step])

    def _ring_for(self, size: int) -> Ring | None:
        return self._ring if size >= RING_ELEMENTS else None

    def _reduce_scatter(self, part: Tensor) -> Tensor:
        """This rank's slice, from everybody's whole vectors."""
        size = len(part)
        counts = sizes(size, self._ranks)
        own = self.own(size)
        wire = self._staging.out(part)
        piece = torch.empty(len(own), dtype=part.dtype, device=part.device)
        landing = self._staging.landing(piece)
        step = max(1, gather.MAX_MESSAGE // part.element_size() // self._ranks)
        ring = self._ring_for(size)
        if ring is not None:
            landing[:] = ring.reduce_scatter(wire, counts)
        elif max(counts) <= step:
            self._comm.Reduce_scatter(wire, landing, counts)
        else:
            for rank, count in enumerate(counts):
                start = block(size, self._ranks, rank).start
                for at in range(0, count, step):
                    end = min(at + step, count)
                    send = wire[start + at : start + end]
                    receive = landing[at:end] if rank == self._comm.rank else None
                    self._comm.Reduce(send, receive, root=rank)
        self._staging.back(landing, piece)
        return piece

    def _scatter_rows(self, rows: Tensor) -> Tensor:
        """This rank's columns of every worker's row, summed in the order of the workers."""
        size = rows.shape[-1]
        workers = self._placement
        columns = torch.empty((workers.total, len(self.own(size))), dtype=rows.dtype, device=rows.device)
        wire, landing = self._staging.out(rows), self._staging.landing(columns)
        requests = []
        for rank in range(self._ranks):
            theirs = block(size, self._ranks, rank)
            for i, worker in enumerate(workers.here):
                requests += gather.in_pieces(
                    self._comm.Isend, wire[i, theirs.start : theirs.stop], rank, worker
                )
            for worker in workers.at(rank):
                requests += gather.in_pieces(self._comm.Irecv, landing[worker], rank, worker)
        MPI.Request.Waitall(requests)
        self._staging.back(landing, columns)
        return sum_in_order(columns)

    def _gather(self, piece: Tensor, counts: list[int]) -> Tensor:
        whole = torch.empty(sum(counts), dtype=piece.dtype, device=piece.device)
        wire, landing = self._staging.out(piece.contiguous()), self._staging.landing(whole)
        ring = self._ring_for(len(whole))
        if ring is not None:
            ring.allgather(wire, landing, counts)
        else:
            gather.allgather(self._comm, wire, landing, counts)
        self._staging.back(landing, whole)
        return whole
