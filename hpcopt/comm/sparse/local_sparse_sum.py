"""The in-process twin of the `SparseSum` port."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from hpcopt.comm.ports import Aggregate, Counter, Exchange, Select
from hpcopt.comm.sparse.costs import bounds, sample
from hpcopt.comm.sparse.selection import keep_largest
from hpcopt.costs.volumes import Shape, selection_bytes, sparse_bytes, worker_cost
from hpcopt.ground.placement import block
from hpcopt.math.topk import union


class LocalSparseSum:
    """`SparseSum` for one process that holds all workers; adds in the order of the workers.

    Args:
        workers: N.
        like: a vector (d,) of the values' dtype.
        exchange: the plan whose bytes are counted; "auto" is the one that needs fewest.
        select: see `Ports.sparse_sum`.
        ranks: count bytes as if the workers lived on so many ranks (the mean over them).
        ordered: count bytes as if every worker's entries travelled by themselves.
    """

    def __init__(
        self,
        workers: int,
        like: Tensor,
        exchange: Exchange = "auto",
        select: Select = "local",
        ranks: int = 1,
        ordered: bool = False,
    ) -> None:
        self._shape = Shape(len(like), workers, like.element_size(), ordered, select == "global")
        self._exchange, self._select, self._ranks = exchange, select, ranks
        self._like = like
        self.counter = Counter()

    def sum(self, indices: Tensor, values: Tensor, expected: int = 0) -> Aggregate:
        """See `SparseSum`."""
        start = time.perf_counter()
        dense = torch.zeros_like(self._like)
        for where, what in zip(indices, values, strict=True):
            dense[where] += what
        k, support, steps = indices.shape[1], union(indices), 0
        if self._select == "global":
            support = support[dense[support] != 0]
            mask, steps = keep_largest(dense[support].numpy(), k, np.asarray, lambda count: 0)
            dense[support[~torch.from_numpy(mask)]] = 0
            support = support[torch.from_numpy(mask)]
        nbytes, passes = worker_cost(self._exchange, self._shape, k, len(support))
        sent = self._bytes(indices, len(support), steps)
        payload = indices.numel() * self._shape.record.itemsize
        self.counter.add(start, sent, self._shape.workers * nbytes, payload, passes)
        return Aggregate(dense, support)

    def affordable(self, densities: tuple[float, ...]) -> float:
        """Dense: nothing travels in one process."""
        return 1.0

    def free(self) -> None:
        """See `SparseSum`."""

    def _bytes(self, indices: Tensor, result: int, steps: int) -> float:
        """Of the plan, of a rank on average."""
        own = [self._own(indices, rank) for rank in range(self._ranks)]
        cut = bounds(np.array([sample(entries) for entries in own]), self._ranks, self._shape.dim)
        staying = [((e >= cut[rank]) & (e < cut[rank + 1])).sum() for rank, e in enumerate(own)]
        mean = sum(map(len, own)) / self._ranks
        off_rank = mean - sum(staying) / self._ranks
        selection = selection_bytes(steps, self._ranks)
        found = {
            "allgather": sparse_bytes("allgather", self._shape, self._ranks, own=mean),
            "owner": sparse_bytes("owner", self._shape, self._ranks, off_rank=off_rank, result=result)
            + selection,
            "dense": sparse_bytes("dense", self._shape, self._ranks),
        }
        return min(found.values()) if self._exchange == "auto" else found[self._exchange]

    def _own(self, indices: Tensor, rank: int) -> np.ndarray:
        """What a rank would have to give, ascending."""
        workers = block(self._shape.workers, self._ranks, rank)
        chosen = indices[workers.start : workers.stop]
        return np.sort(chosen.numpy(), axis=None) if self._shape.ordered else union(chosen).numpy()
