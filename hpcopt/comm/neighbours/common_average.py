"""The `Neighbours` port where all rows of W are the same, as on a complete graph: a sum over the workers.

Row by row it would take N² products of vectors, and every row would travel to every rank.

Symbols: N workers, n of them here, P ranks, c (N,) the row that all rows of W are.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from hpcopt.comm.ports import Contribution, Counter, Reducer
from hpcopt.costs.volumes import allreduce_bytes, ordered_bytes
from hpcopt.ground.placement import Placement
from hpcopt.math.flat import copied

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Carrier(Protocol):
    """Sums the ranks' vectors while they compute."""

    def start(self, part: Tensor) -> None:
        """Sends off what this rank contributes, (m,), which is overwritten. Collective."""

    def finish(self) -> Tensor:
        """The sum, (m,). Collective."""

    def free(self) -> None:
        """Frees what it holds. Collective."""


class CommonAverage:
    """`Neighbours` of one average for all, X ← 1 cᵀ X: the same bits in every row.

    A mix of as many numbers as the model has counts as a pass.

    Args:
        reducer: for the sums; freed with the port.
        placement: of the workers on the ranks.
        common: c.
        like: a vector (m,) of the rows' dtype, on their device.
        dim: d, of the model.
        ordered: the reducer adds in the order of the workers.
        carrier: of what `begin` sends off; None: that is summed there and then.
        ranks: count bytes as if the workers lived on so many ranks (the mean over them); None: on their own.
    """

    def __init__(
        self,
        reducer: Reducer,
        placement: Placement,
        common: NDArray[np.float64],
        like: Tensor,
        dim: int,
        ordered: bool,
        carrier: Carrier | None = None,
        ranks: int | None = None,
    ) -> None:
        self._reducer, self._placement, self._dim = reducer, placement, dim
        self._ordered, self._carrier = ordered, carrier
        here = placement.here
        self._c = torch.from_numpy(common[here.start : here.stop]).to(like)
        self._ranks = placement.ranks if ranks is None else ranks
        self._of_rank = placement.n if ranks is None else placement.total / ranks
        self._parts: dict[int, Contribution] = {}
        self._snapshot: Tensor | None = None
        self._pending: tuple[Tensor | None, float] | None = None
        self.counter = Counter()

    def mix(self, X: Tensor, round: int) -> None:
        """See `Neighbours`. Collective."""
        start = time.perf_counter()
        assert self._pending is None, "a mix has begun and was not finished"
        X.copy_(self._average(X))
        self._count(start, X)

    def begin(self, X: Tensor, round: int) -> Tensor:
        """See `Neighbours`. Collective; the snapshot is overwritten by the next one."""
        start = time.perf_counter()
        assert self._pending is None, "a mix has begun and was not finished"
        self._snapshot = copied(X, self._snapshot)
        average = None
        if self._carrier is None:
            average = self._average(X)
        else:
            self._carrier.start(torch.mv(X.T, self._c))
        self._pending = average, time.perf_counter() - start
        return self._snapshot

    def finish(self, X: Tensor, snapshot: Tensor) -> None:
        """See `Neighbours`. Collective."""
        start = time.perf_counter()
        assert self._pending is not None, "nothing has begun"
        assert snapshot is self._snapshot, "finish takes what begin gave"
        average, seconds = self._pending
        if average is None:
            assert self._carrier is not None
            average = self._carrier.finish()
        X.sub_(snapshot).add_(average)
        self._pending = None
        self._count(start - seconds, X)

    def free(self) -> None:
        """See `Neighbours`. Collective."""
        if self._carrier is not None:
            if self._pending is not None:
                self._carrier.finish()
            self._carrier.free()
        self._reducer.free()

    def _average(self, X: Tensor) -> Tensor:
        """Σ c_j x_j over all workers, (m,), until the next one."""
        m = X.shape[1]
        if m not in self._parts:
            self._parts[m] = self._reducer.contribution(m)
        part = self._parts[m]
        if self._ordered:
            for i, (x, weight) in enumerate(zip(X, self._c.tolist(), strict=True)):
                part.add(i, x, weight)
        elif len(X):
            part.of(0).addmv_(X.T, self._c)  # all rows in one product
        return part.sum()

    def _count(self, since: float, X: Tensor) -> None:
        nbytes = X.shape[1] * X.element_size()
        sent = ordered_bytes(nbytes, self._ranks, self._of_rank if self._ordered else 1)
        of_workers = len(X) * allreduce_bytes(nbytes, self._placement.total)
        self.counter.add(since, sent, of_workers, nbytes * len(X), float(X.shape[1] == self._dim))
