"""Problems that compute one worker after the other: what is left to say is what one worker computes."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch

from hpcopt.math.flat import aligned
from hpcopt.problems.base import Draw, Problem, row

if TYPE_CHECKING:
    from torch import Tensor

    from hpcopt.problems.base import Part, Ready


class OneByOne(Problem):
    """Loops over the workers here; i counts them from 0, and a worker's model x is (d,)."""

    @abstractmethod
    def _loss(self, i: int, x: Tensor, draw: Draw | None) -> Tensor:
        """f_i(x), a scalar."""

    @abstractmethod
    def _add_gradient(
        self, i: int, x: Tensor, draw: Draw | None, scale: float, out: Tensor, ready: Ready | None = None
    ) -> None:
        """out += scale · ∇f_i(x), (d,); may tell ``ready`` what of it is final."""

    @abstractmethod
    def _hvp(self, i: int, x: Tensor, v: Tensor, draw: Draw | None) -> Tensor:
        """∇²f_i(x) v, (d,)."""

    def _stacks(self, rows: int) -> bool:
        """Whether there is a `stacked_gradient`, for mini-batches of so many rows."""
        return False

    def losses(self, X: Tensor, draw: Draw | None = None) -> Tensor:
        """See `Problem`."""
        losses = [self._loss(i, row(X, i), draw) for i in range(self.share.n)]
        return torch.stack(losses) if losses else self._zeros(0)

    def gradients(
        self, X: Tensor, draw: Draw | None = None, *, weighted: bool = False, out: Tensor | None = None
    ) -> Tensor:
        """See `Problem`."""
        out = self._zeros(self.share.n, self.dim) if out is None else out
        for i, scale in enumerate(self._scales(weighted)):
            self._add_gradient(i, row(X, i), draw, scale, out[i])
            self.samples += self.batch_rows(i, draw)
        return out

    def total_gradient(
        self,
        X: Tensor,
        draw: Draw | None = None,
        *,
        out: Tensor | None = None,
        ready: Ready | None = None,
    ) -> Tensor:
        """See `Problem`."""
        out = self._zeros(self.dim) if out is None else out.zero_()
        for i, weight in enumerate(self._scales(True)):
            last = i == self.share.n - 1
            self._add_gradient(i, row(X, i), draw, weight, out, ready if last else None)
            self.samples += self.batch_rows(i, draw)
        return out

    def gradient(self, i: int, x: Tensor, draw: Draw | None, part: Part = "all") -> list[Tensor]:
        """See `Problem`."""
        self.samples += self.batch_rows(i, draw)
        out = torch.zeros_like(x)
        self._add_gradient(i, aligned(x), draw, 1.0, out)
        return self.layout.tensors(out, part)

    def stackable(self) -> bool:
        """See `Problem`. On one core of a CPU it brings nothing: 64 mlps together take as long as in turn."""
        sizes = {self.batch_rows(i, Draw(0)) for i in range(self.share.n)}
        return self.share.device.type != "cpu" and len(sizes) == 1 and self._stacks(sizes.pop())

    def hvps(self, X: Tensor, V: Tensor, draw: Draw | None = None, *, weighted: bool = False) -> Tensor:
        """See `Problem`."""
        out = self._zeros(self.share.n, self.dim)
        for i, scale in enumerate(self._scales(weighted)):
            self._add_hvp(i, X, V, draw, scale, out[i])
        return out

    def total_hvp(
        self, X: Tensor, V: Tensor, draw: Draw | None = None, *, out: Tensor | None = None
    ) -> Tensor:
        """See `Problem`."""
        out = self._zeros(self.dim) if out is None else out.zero_()
        for i, weight in enumerate(self._scales(True)):
            self._add_hvp(i, X, V, draw, weight, out)
        return out

    def _add_hvp(self, i: int, X: Tensor, V: Tensor, draw: Draw | None, scale: float, out: Tensor) -> None:
        out.add_(self._hvp(i, row(X, i), row(V, i), draw), alpha=scale)
        self.samples += 2 * self.batch_rows(i, draw)

    def _scales(self, weighted: bool) -> list[float]:
        """What each worker's number is multiplied by."""
        return self.weights.tolist() if weighted else [1.0] * self.share.n
