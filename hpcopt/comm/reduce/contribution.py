"""The buffer of a `Contribution`: one vector for all workers here, or one for each where sums are ordered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hpcopt.comm.ports import Gradients, Products
from hpcopt.math.flat import buffer

Total = Callable[[Tensor], Tensor]


class Buffer:
    """`Contribution` of a reducer.

    Args:
        size: m.
        like: a tensor of the dtype and on the device.
        workers: n.
        apart: every worker's vector stays by itself; otherwise they are added up as they come.
        sum: of a buffer, (m,) or (n, m), over all ranks; may overwrite it.
        scatter: this rank's slice of that.

    Attributes:
        memory: (m,) or (n, m).
    """

    def __init__(
        self, size: int, like: Tensor, workers: int, apart: bool, sum: Total, scatter: Total
    ) -> None:
        self._workers, self._apart = workers, apart
        self.memory = buffer((workers, size) if apart else (size,), like)
        self._sum, self._scatter = sum, scatter
        self._spent = True

    def of(self, i: int) -> Tensor:
        """See `Contribution`."""
        if not 0 <= i < self._workers:
            raise IndexError(f"worker {i} of {self._workers} here")
        self._begin()
        return self.memory[i] if self._apart else self.memory

    def add(self, i: int, vector: Tensor, weight: float = 1.0) -> None:
        """See `Contribution`."""
        self.of(i).add_(vector, alpha=weight)

    def add_gradients(
        self,
        problem: Gradients,
        x: Tensor,
        draw: Any = None,
        ready: Callable[[int, int], None] | None = None,
    ) -> Buffer:
        """See `Contribution`; ``ready`` as `Problem.total_gradient` takes it."""
        if self._apart:
            self._begin()
            problem.gradients(x, draw, weighted=True, out=self.memory)
        elif self._spent:
            self._spent = False
            problem.total_gradient(x, draw, out=self.memory, ready=ready)
        else:
            self.memory += problem.total_gradient(x, draw)
        return self

    def add_hvps(self, problem: Gradients, x: Tensor, v: Tensor, draw: Any = None) -> Buffer:
        """See `Contribution`."""
        if self._apart:
            self._begin()
            self.memory += problem.hvps(x, v, draw, weighted=True)
        elif self._spent:
            self._spent = False
            problem.total_hvp(x, v, draw, out=self.memory)
        else:
            self.memory += problem.total_hvp(x, v, draw)
        return self

    def add_transposed(self, problem: Products, c: Tensor) -> Buffer:
        """See `Contribution`."""
        self._begin()
        (problem.transposed_each if self._apart else problem.transposed)(c, self.memory)
        return self

    def sum(self) -> Tensor:
        """See `Contribution`. Collective."""
        return self._sum(self.take())

    def scatter(self) -> Tensor:
        """See `Contribution`. Collective."""
        return self._scatter(self.take())

    def take(self) -> Tensor:
        """Ends the contribution and gives the buffer, for its reducer."""
        self._begin()  # a rank whose workers added nothing contributes zeros
        self._spent = True
        return self.memory

    def _begin(self) -> None:
        if self._spent:
            self.memory.zero_()
            self._spent = False


def sum_in_order(rows: Tensor) -> Tensor:
    """Σ rows, added one after the other: the same bits however the columns are split."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total
