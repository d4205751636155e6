"""The `Reducer` port over MPI."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from mpi4py import MPI
from torch import Tensor

from hpcopt.comm import gather
from hpcopt.comm.local import sum_in_order
from hpcopt.comm.overlap import Overlapped
from hpcopt.comm.plans import Plan
from hpcopt.comm.ports import Counter, Later, Summing, allreduce_bytes, gather_bytes
from hpcopt.comm.ring import Ring
from hpcopt.comm.staging import Staging
from hpcopt.placement import block, sizes

# below this, the ring's latency of 2(M - 1) steps costs more than the bytes that it saves
RING_ELEMENTS = 1 << 14


class MPIReducer:
    """`Reducer` over a communicator.

    Its plans for a sum: ``"mpi"``, MPI's own allreduce of the ranks' partial sums, in place and without
    copies; ``"ring"``, the same between hosts with slow links (`hpcopt.comm.ring`); ``"ordered"``, an
    exchange that gives every rank all workers' rows for its slice of the columns, so that sums run in the
    order of the workers and come out bit-identical on any number of ranks (N/2 times the bytes).

    Args:
        comm: duplicated; the caller's stays as it is. Collective.
        workers: N, over the ranks of ``comm`` in contiguous blocks.
        staging: how GPU tensors reach MPI.
        plan: see `hpcopt.comm.plans.choose`.
        overlap: sums that `begin` opens travel while their buffer is being filled (CPU tensors only).
    """

    def __init__(
        self, comm: MPI.Comm, workers: int, staging: Staging, plan: Plan = "mpi", overlap: bool = False
    ) -> None:
        self._comm = comm.Dup()
        self._workers = workers
        self._mine = len(block(workers, comm.size, comm.rank))
        self._staging = staging
        self.counter = Counter()
        self.form: Literal["sum", "weighted"] = "weighted" if plan == "ordered" else "sum"
        self._overlap = overlap and self.form == "sum" and staging.device.type == "cpu"
        self._ring = Ring(self._comm) if plan == "ring" else None

    def own(self, size: int) -> range:
        """See `Reducer`."""
        return block(size, self._comm.size, self._comm.rank)

    def sum(self, part: Tensor) -> Tensor:
        """See `Reducer`. Collective."""
        return self._sum(part, passes=1.0)

    def begin(self, part: Tensor) -> Summing:
        """See `Reducer`. Collective."""
        if self._overlap:
            return _Early(self, part)
        return Later(self.sum, part)

    def scalars(self, values: Tensor) -> Tensor:
        """See `Reducer`. Collective."""
        return self._sum(values, passes=0.0)

    def reduce_scatter(self, part: Tensor) -> Tensor:
        """See `Reducer`. Collective."""
        start = time.perf_counter()
        ordered = self.form == "weighted"
        piece = self._scatter_rows(part) if ordered else self._reduce_scatter(part)
        nbytes = part.shape[-1] * part.element_size()
        rows = self._mine if ordered else 1  # the ordered exchange sends every worker's row
        sent = rows * gather_bytes(nbytes, self._comm.size)
        self.counter.add(start, sent, self._mine * gather_bytes(nbytes, self._workers), passes=0.5)
        return piece

    def allgather(self, piece: Tensor, size: int) -> Tensor:
        """See `Reducer`. Collective."""
        start = time.perf_counter()
        whole = self._gather(piece, size)
        nbytes = size * piece.element_size()
        sent = gather_bytes(nbytes, self._comm.size)
        self.counter.add(start, sent, self._mine * gather_bytes(nbytes, self._workers), passes=0.5)
        return whole

    def free(self) -> None:
        """See `Reducer`. Collective."""
        if self._ring is not None:
            self._ring.free()
        self._comm.Free()

    def _sum(self, part: Tensor, passes: float) -> Tensor:
        start = time.perf_counter()
        if self.form == "weighted":
            total = self._gather(self._scatter_rows(part), part.shape[-1])
        else:
            total = self._allreduce(part)
        self._count_sum(start, total, passes)
        return total

    def _count_sum(self, since: float, total: Tensor, passes: float) -> None:
        nbytes = total.numel() * total.element_size()
        sent = allreduce_bytes(nbytes, self._comm.size)
        if self.form == "weighted":  # the ordered exchange sends every worker's row
            sent += (self._mine - 1) * gather_bytes(nbytes, self._comm.size)
        self.counter.add(since, sent, self._mine * allreduce_bytes(nbytes, self._workers), passes)

    def _allreduce(self, part: Tensor) -> Tensor:
        wire = self._staging.out(part)
        self._allreduce_wire(wire)
        self._staging.back(wire, part)
        return part

    def _allreduce_wire(self, wire: Any) -> None:
        step = gather.MAX_MESSAGE // wire.dtype.itemsize
        if self._ring is not None and wire.shape[0] >= RING_ELEMENTS:
            self._ring.allreduce(wire)
        elif wire.shape[0] <= step:  # the usual case; slicing costs a microsecond
            self._comm.Allreduce(MPI.IN_PLACE, wire)
        else:
            for start in range(0, wire.shape[0], step):
                self._comm.Allreduce(MPI.IN_PLACE, wire[start : start + step])

    def _reduce_scatter(self, part: Tensor) -> Tensor:
        """This rank's slice, from everybody's whole vectors."""
        size = len(part)
        counts = sizes(size, self._comm.size)
        own = self.own(size)
        wire = self._staging.out(part)
        piece = torch.empty(len(own), dtype=part.dtype, device=part.device)
        landing = self._staging.landing(piece)
        step = max(1, gather.MAX_MESSAGE // part.element_size() // self._comm.size)
        if max(counts) <= step:
            self._comm.Reduce_scatter(wire, landing, counts)
        else:
            for rank, count in enumerate(counts):
                start = block(size, self._comm.size, rank).start
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
        columns = torch.empty((self._workers, len(self.own(size))), dtype=rows.dtype, device=rows.device)
        wire, landing = self._staging.out(rows.reshape(self._mine, size)), self._staging.landing(columns)
        hosted = [block(self._workers, self._comm.size, rank) for rank in range(self._comm.size)]
        requests = []
        for rank in range(self._comm.size):
            theirs = block(size, self._comm.size, rank)
            for i, worker in enumerate(hosted[self._comm.rank]):
                requests += gather.in_pieces(
                    self._comm.Isend, wire[i, theirs.start : theirs.stop], rank, worker
                )
            for worker in hosted[rank]:
                requests += gather.in_pieces(self._comm.Irecv, landing[worker], rank, worker)
        MPI.Request.Waitall(requests)
        self._staging.back(landing, columns)
        return sum_in_order(columns)

    def _gather(self, piece: Tensor, size: int) -> Tensor:
        whole = torch.empty(size, dtype=piece.dtype, device=piece.device)
        wire, landing = self._staging.out(piece.contiguous()), self._staging.landing(whole)
        gather.allgather(self._comm, wire, landing, sizes(size, self._comm.size))
        self._staging.back(landing, whole)
        return whole


class _Early:
    """`Summing` of an `MPIReducer` that overlaps; its time is what `finish` still has to wait."""

    def __init__(self, reducer: MPIReducer, part: Tensor) -> None:
        self._reducer, self._part = reducer, part
        self._parts = Overlapped(part.numpy(), reducer._allreduce_wire)
        self.ready: Callable[[int, int], None] | None = self._parts.ready

    def finish(self) -> Tensor:
        """See `Summing`. Collective."""
        start = time.perf_counter()
        self._parts.finish()
        self._reducer._count_sum(start, self._part, passes=1.0)
        return self._part
