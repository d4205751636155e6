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
from hpcopt.comm.reduce.choice import Reduction, plain
from hpcopt.comm.reduce.contribution import Buffer, sum_in_order
from hpcopt.comm.reduce.ways import Table, Way, Ways
from hpcopt.comm.staging import Staging
from hpcopt.costs.volumes import allreduce_bytes, gather_bytes, ordered_bytes
from hpcopt.ground.placement import Placement, block, sizes

WIDEST = 8
"""bytes of a number"""


class MPIReducer:
    """`Reducer` over a communicator; on one rank nothing is moved.

    Its ways of a sum: ``"mpi"``, MPI's own allreduce of the ranks' partial sums, in place and without
    copies; ``"ring"``, the same between hosts with slow links (`hpcopt.comm.reduce.ring`), where long vectors
    are reduce-scattered and gathered so, too; ``"nccl"``, the same between GPUs; ``"ordered"``, an exchange
    that gives every rank all workers' rows for its slice of the columns, so that sums run in the order of the
    workers and come out bit-identical on any number of ranks (N/2 times the bytes).

    Args:
        comm: duplicated; the caller's stays as it is. Collective.
        placement: of the workers on the ranks of ``comm``.
        staging: how GPU tensors reach MPI.
        like: a vector (d,) like the model.
        reduction: how sums travel, see `hpcopt.comm.reduce.choice.choose`.
        overlap: gradients travel while they are being computed (CPU tensors only).
        table: in what pieces, and how a GPU's tensors reach MPI, as `choose` says; None: whole.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        placement: Placement,
        staging: Staging,
        like: Tensor,
        reduction: Reduction = "mpi",
        overlap: bool = False,
        table: Table | None = None,
    ) -> None:
        self._comm = comm.Dup()
        self._placement, self._like = placement, like
        # small sums take microseconds: what is counted of them must not be looked up again and again
        self._dim, self._n, self._workers, self._ranks = len(like), placement.n, placement.total, comm.size
        self._ordered, self._alone = reduction == "ordered", comm.size == 1
        on_host = staging.device.type == "cpu"
        self._overlap = overlap and on_host and not self._ordered and not self._alone
        self._ways = Ways(self._comm, staging, table or plain(self._comm, reduction, staging, like))
        self._short = -1 if self._ordered or self._alone else self._ways.short() // WIDEST
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
        self._ways.free()
        self._comm.Free()

    # --- sums -----------------------------------------------------------------------------------------------

    def _buffer(self, size: int) -> Buffer:
        return Buffer(size, self._like, self._n, self._ordered, self.total, self._scatter)

    def _own_part(self, rows: Tensor) -> Tensor:
        return rows.contiguous() if self._ordered else rows.sum(0)

    def _gradient_in_parts(self, part: Buffer, problem: Gradients, x: Tensor, draw: Any) -> Tensor:
        """The gradient, whose parts travel as they become ready; its time is what is left to wait for."""
        way = self._ways.of("sum", part.memory.nbytes)
        assert isinstance(way, Way)  # on the CPU
        parts = BucketedSum(part.memory.numpy(), way.plan.allreduce)
        part.add_gradients(problem, x, draw, parts.ready)
        start = time.perf_counter()
        parts.finish()
        total = part.take()
        self._count_sum("sum", start, total)
        return total

    def total(self, part: Tensor, verb: str = "sum") -> Tensor:
        """The sum of all ranks' (m,), in place, or of all workers' (n, m) in their order. Collective."""
        start = time.perf_counter()
        if not self._ordered:
            total = self._allreduce(part)
        elif self._alone:
            total = sum_in_order(part)
        else:
            total = self._gather(self._scatter_rows(part), sizes(part.shape[-1], self._ranks))
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
        if part.numel() <= self._short:  # of microseconds none is to be lost
            self._comm.Allreduce(MPI.IN_PLACE, part.numpy())
        elif not self._alone:
            self._ways.of("sum", part.numel() * part.element_size()).allreduce(part)
        return part

    def _reduce_scatter(self, part: Tensor) -> Tensor:
        """This rank's slice, from everybody's whole vectors."""
        if self._alone:
            return part.clone()
        counts = sizes(len(part), self._ranks)
        piece = torch.empty(counts[self._comm.rank], dtype=part.dtype, device=part.device)
        self._ways.of("scatter", part.numel() * part.element_size()).reduce_scatter(part, piece, counts)
        return piece

    def _scatter_rows(self, rows: Tensor) -> Tensor:
        """This rank's columns of every worker's row, summed in the order of the workers."""
        if self._alone:
            return sum_in_order(rows)
        size = rows.shape[-1]
        workers = self._placement
        columns = torch.empty((workers.total, len(self.own(size))), dtype=rows.dtype, device=rows.device)
        # from rank to rank, like what is gathered
        way = self._ways.of("gather", size * rows.element_size())
        assert isinstance(way, Way)  # NCCL knows no order
        staging = way.staging
        wire, landing = staging.out(rows), staging.landing(columns)
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
        staging.back(landing, columns)
        return sum_in_order(columns)

    def _gather(self, piece: Tensor, counts: list[int]) -> Tensor:
        if self._alone:
            return piece.clone()
        whole = torch.empty(sum(counts), dtype=piece.dtype, device=piece.device)
        way = self._ways.of("gather", whole.numel() * whole.element_size())
        way.allgather(piece.contiguous(), whole, counts)
        return whole
