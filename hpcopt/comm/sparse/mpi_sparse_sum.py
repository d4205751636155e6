"""The `SparseSum` port over MPI."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray
from torch import Tensor

from hpcopt.comm import gather
from hpcopt.comm.ports import Aggregate, Counter, Exchange, Select
from hpcopt.comm.reduce.mpi_reducer import MPIReducer
from hpcopt.comm.sparse.costs import Costs, bounds, sample
from hpcopt.comm.sparse.selection import keep_largest
from hpcopt.costs.volumes import Shape, allreduce_bytes, bits, selection_bytes, sparse_bytes, worker_cost
from hpcopt.ground.placement import Placement
from hpcopt.math.flat import buffer
from hpcopt.math.optimizers import scattered
from hpcopt.math.topk import largest, union

Records = NDArray[np.void]


class MPISparseSum:
    """`SparseSum` over a communicator; its plans are those of `hpcopt.costs.volumes`.

    Entries travel as (index, value) records through host memory, also those of a GPU: there are few of them.
    The vector that they are added up in stays on its device. Workers that share a rank are added up before
    anything travels, unless sums run in the order of the workers; then each worker's entries are a segment of
    their own. Segments are added in the order of the ranks (but a dense sum as MPI does it).

    Args:
        comm: duplicated; the caller's stays as it is. Collective.
        placement: of the workers on the ranks of ``comm``.
        like: a vector (d,) of the values' dtype, on their device.
        reducer: for the dense plan, freed with this port.
        ordered: sums are in the order of the workers.
        exchange: the plan, or "auto".
        select: see `Ports.sparse_sum`.
        costs: gives what was measured on these ranks, which the choice of a plan rests upon, and where the
            run began, which `affordable` rests upon: a run keeps its density. Collective at the first call.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        placement: Placement,
        like: Tensor,
        reducer: MPIReducer,
        ordered: bool,
        exchange: Exchange,
        select: Select,
        costs: Callable[[], tuple[Costs, Costs]],
    ) -> None:
        self._comm, self._reducer, self._costs = comm.Dup(), reducer, costs
        self._exchange, self._select = exchange, select
        self._shape = Shape(len(like), placement.total, like.element_size(), ordered, select == "global")
        self._mine = placement.n
        self._segments = list(placement.counts) if ordered else [1] * comm.size
        self._dense = buffer(like.shape, like).zero_()
        self._support = torch.empty(0, dtype=torch.int64, device=like.device)
        self.counter = Counter()

    def sum(self, indices: Tensor, values: Tensor, expected: int = 0) -> Aggregate:
        """See `SparseSum`. Collective."""
        start = time.perf_counter()
        self._clear()
        k = indices.shape[1]
        plan = self._plan(k, expected)
        if plan == "alone":
            sent = self._sum_alone(indices, values)
        elif plan == "dense":
            sent = self._sum_dense(indices, values)
        elif plan == "owner":
            sent = self._sum_by_owners(indices, values)
        else:
            sent = self._sum_everywhere(indices, values)
        aggregate = Aggregate(self._dense, self._support)
        nbytes, passes = worker_cost(self._exchange, self._shape, k, len(self._support))
        payload = indices.numel() * self._shape.record.itemsize
        self.counter.add(start, sent, self._mine * nbytes, payload, passes)
        return aggregate

    def affordable(self, densities: tuple[float, ...]) -> float:
        """See `SparseSum`. Collective."""
        _, first = self._costs()
        return first.affordable(self._shape, densities)

    def free(self) -> None:
        """See `SparseSum`. Collective."""
        self._reducer.free()
        self._comm.Free()

    def _plan(self, k: int, expected: int) -> str:
        if self._comm.size == 1:
            return "alone"
        if self._exchange != "auto":
            return self._exchange
        costs, _ = self._costs()
        return costs.fastest(self._shape, k, expected or self._shape.chance(k, self._shape.workers))

    # --- the plans: each leaves the sum in _dense and _support, and gives the bytes that this rank sent

    def _sum_alone(self, indices: Tensor, values: Tensor) -> float:
        """Whatever the plan: nothing leaves the device."""
        self._add(zip(indices, values, strict=True))
        self._support = union(indices)
        self._keep_largest(indices.shape[1])
        return 0.0

    def _sum_dense(self, indices: Tensor, values: Tensor) -> float:
        counter = self._reducer.counters["sum"]
        before = counter.bytes
        if self._shape.ordered:
            rows = values.new_zeros((self._mine, self._shape.dim)).scatter_(1, indices, values)
            self._dense.copy_(self._reducer.total(rows))
        else:
            self._add(zip(indices, values, strict=True))
            self._reducer.total(self._dense)
        self._support = self._union(indices)
        self._keep_largest(indices.shape[1])
        return counter.bytes - before + allreduce_bytes(bits(self._shape.dim), self._comm.size)

    def _union(self, indices: Tensor) -> Tensor:
        """The entries that some worker on some rank gives. Collective."""
        given = np.zeros(self._shape.dim, dtype=bool)
        given[indices.cpu().numpy().ravel()] = True
        packed = np.packbits(given)
        self._comm.Allreduce(MPI.IN_PLACE, packed, MPI.BOR)
        support = np.flatnonzero(np.unpackbits(packed, count=self._shape.dim))
        return torch.from_numpy(support).to(self._dense.device)

    def _sum_everywhere(self, indices: Tensor, values: Tensor) -> float:
        segments = self._gather(self._own_segments(indices, values), self._segments, indices.shape[1])
        parts = [self._tensors(segment) for segment in segments]
        self._add(parts)
        self._support = union(torch.cat([where for where, _ in parts]))
        self._keep_largest(indices.shape[1])
        total = sum(len(segment) for segment in segments)
        return sparse_bytes("allgather", self._shape, self._comm.size, total / self._comm.size)

    def _sum_by_owners(self, indices: Tensor, values: Tensor) -> float:
        own = self._own_segments(indices, values)
        mine, off_rank = self._to_owners(own)
        result, steps = self._result(mine, indices.shape[1])
        everything = np.concatenate(self._gather([result], [1] * self._comm.size))
        self._support, total = self._tensors(everything)  # owners have ascending ranges
        self._dense[self._support] = total
        sent = sparse_bytes("owner", self._shape, self._comm.size, off_rank=off_rank, result=len(everything))
        return sent + selection_bytes(steps, self._comm.size)

    def _result(self, segments: list[Records], k: int) -> tuple[Records, int]:
        """The sum of what this rank owns, and the steps that a global selection took. Collective."""
        parts = [self._tensors(segment) for segment in segments]
        self._add(parts)
        where = union(torch.cat([where for where, _ in parts]))
        result = self._records(where, self._dense[where])
        self._dense[where] = 0
        if self._select == "local":
            return result, 0
        result = result[result["value"] != 0]
        kept, steps = keep_largest(result["value"].copy(), k, self._total, self._before)
        return result[kept], steps

    def _total(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        self._comm.Allreduce(MPI.IN_PLACE, counts)
        return counts

    def _before(self, count: int) -> int:
        """The sum over the ranks before this one."""
        return sum(self._comm.allgather(count)[: self._comm.rank])

    def _keep_largest(self, k: int) -> None:
        """Of a sum that every rank has: only the k largest entries, where they are to be selected again."""
        if self._select == "local":
            return
        support = self._support[self._dense[self._support] != 0]
        kept = support[largest(self._dense[support][None], min(k, len(support)))[0]]
        values = self._dense[kept]
        self._clear()
        self._dense[kept], self._support = values, kept

    # --- segments ------------------------------------------------------------------------------------------

    def _own_segments(self, indices: Tensor, values: Tensor) -> list[Records]:
        """One for each worker here, or one for all of them."""
        if self._shape.ordered or self._mine == 1:
            return [self._records(where, what) for where, what in zip(indices, values, strict=True)]
        self._add(zip(indices, values, strict=True))
        where = union(indices)
        what = self._dense[where]
        self._dense[where] = 0
        return [self._records(where, what)]

    def _to_owners(self, segments: list[Records]) -> tuple[list[Records], int]:
        """All ranks' segments of this rank's range, and how many entries left this rank. Collective."""
        ranks, me = self._comm.size, self._comm.rank
        cut = self._bounds(segments)
        edges = np.array([np.searchsorted(segment["index"], cut) for segment in segments]).reshape(
            -1, len(cut)
        )
        counts = np.diff(edges, axis=1)  # of each segment for each owner
        incoming = np.empty(sum(self._segments), np.int64)
        self._comm.Alltoallv(
            [np.ascontiguousarray(counts.T), [len(segments)] * ranks], [incoming, self._segments]
        )
        lengths = np.split(incoming, np.cumsum(self._segments)[:-1])
        received = [np.empty(of_rank.sum(), self._shape.record) for of_rank in lengths]
        requests: list[MPI.Request] = []
        for rank in ((me + step) % ranks for step in range(ranks)):  # not all to the same one at once
            leaving = self._joined([s[e[rank] : e[rank + 1]] for s, e in zip(segments, edges, strict=True)])
            if rank == me:
                received[rank] = leaving
                continue
            requests += gather.in_pieces(self._comm.Irecv, received[rank].view(np.uint8), rank)
            requests += gather.in_pieces(self._comm.Isend, leaving.view(np.uint8), rank)
        MPI.Request.Waitall(requests)
        mine = [
            segment
            for records, of_rank in zip(received, lengths, strict=True)
            for segment in np.split(records, np.cumsum(of_rank)[:-1])
        ]
        return mine, int(counts.sum() - counts[:, me].sum())

    def _bounds(self, segments: list[Records]) -> NDArray[np.int64]:
        """Ranges of the owners, balanced over what all ranks have to give. Collective."""
        own = sample(np.sort(self._joined(segments)["index"]))
        samples = np.empty((self._comm.size, len(own)), np.int64)
        self._comm.Allgather(own, samples)
        return bounds(samples, self._comm.size, self._shape.dim)

    def _gather(self, segments: list[Records], of_ranks: list[int], k: int | None = None) -> list[Records]:
        """All ranks' segments, in their order. Collective.

        Args:
            segments: this rank's.
            of_ranks: how many each rank has.
            k: entries of a single worker, where segments may be that.
        """
        if k is not None and sum(of_ranks) == self._shape.workers:
            lengths = np.full(self._shape.workers, k)
        else:
            lengths = np.empty(sum(of_ranks), np.int64)
            self._comm.Allgatherv(np.array([len(s) for s in segments], np.int64), [lengths, of_ranks])
        everything = np.empty(lengths.sum(), self._shape.record)
        starts = np.cumsum([0, *of_ranks])
        itemsize = self._shape.record.itemsize
        counts = [int(lengths[a:b].sum()) * itemsize for a, b in pairwise(starts)]
        own = self._joined(segments).view(np.uint8)
        gather.allgather(self._comm, own, everything.view(np.uint8), counts)
        return np.split(everything, np.cumsum(lengths)[:-1])

    def _joined(self, segments: list[Records]) -> Records:
        """One after the other; a rank without workers may have none."""
        return np.concatenate([np.empty(0, self._shape.record), *segments])

    def _records(self, where: Tensor, what: Tensor) -> Records:
        records = np.empty(len(where), self._shape.record)
        records["index"], records["value"] = where.cpu().numpy(), what.cpu().numpy()
        return records

    def _tensors(self, records: Records) -> tuple[Tensor, Tensor]:
        where = torch.from_numpy(records["index"].astype(np.int64))
        what = torch.from_numpy(records["value"].copy())
        return where.to(self._dense.device), what.to(self._dense.device)

    def _add(self, parts: Iterable[tuple[Tensor, Tensor]]) -> None:
        for where, what in parts:
            self._dense.index_add_(0, where, what)

    def _clear(self) -> None:
        if scattered(self._support, self._dense):
            self._dense[self._support] = 0
        else:
            self._dense.zero_()
