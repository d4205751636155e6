"""Heterogeneous linear regression with a known optimum (METHODS section 1, RegTop-k)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hpcopt.config.base import Count, NonNegative
from hpcopt.problems.objective import Objective

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

LARGEST_SOLVED = 2048
"""dimension up to which the optimum is found from the normal equations (d² numbers)"""
PIECE = 1 << 17
"""of these, that a worker has at a time"""


class LinearRegression(Objective):
    """Heterogeneous linear regression, mean squared error, known optimum.

    | symbol | shape  | meaning |
    |--------|--------|---------|
    | A_n    | (D, d) | N(0, 1) |
    | u_n    | scalar | N(0, spread): the worker's mean parameter; ``spread`` is a variance |
    | t_n    | (d,)   | u_n·1 + N(0, I): the worker's true parameter |
    | b_n    | (D,)   | A_n t_n + N(0, noise): the targets; ``noise`` is a variance |
    | f_n    | scalar | (1/D) ‖A_n x − b_n‖² |
    """

    dim: Count = 100
    """parameters d"""
    rows_per_worker: Count = 500
    """rows D of each worker"""
    spread: NonNegative = 5.0
    """variance of the workers' mean parameter u_n: how different they are"""
    noise: NonNegative = 0.5
    """variance of the noise on the targets"""

    def data(self, worker: int, seed: int) -> tuple[Any, Any]:
        """A_n (D, d) and b_n (D,)."""
        from hpcopt.math.streams import stream

        generator = stream(seed, "linear_regression", worker)
        truth = math.sqrt(self.spread) * generator.standard_normal() + generator.standard_normal(self.dim)
        A = generator.standard_normal((self.rows_per_worker, self.dim))
        b = A @ truth + math.sqrt(self.noise) * generator.standard_normal(self.rows_per_worker)
        return A, b

    def count_rows(self, worker: int, seed: int) -> int:
        """D."""
        return self.rows_per_worker

    def initial(self, seed: int) -> Any:
        """Uniform between −0.1 and 0.1, (d,)."""
        from hpcopt.math.streams import stream

        return stream(seed, "initial").uniform(-0.1, 0.1, self.dim)

    def loss(self, x: Tensor, A: Tensor, b: Tensor) -> Tensor:
        """See `Objective`."""
        return (A @ x - b).square().mean()

    def add_gradient(self, out: Tensor, scale: float, x: Tensor, A: Tensor, b: Tensor) -> None:
        """See `Objective`; with one pass and one rounding less than the gradient and its sum."""
        out.add_(A.T @ (A @ x - b), alpha=2 * scale / len(b))

    def hvp(self, x: Tensor, v: Tensor, A: Tensor, b: Tensor) -> Tensor:
        """See `Objective`."""
        return (A.T @ (A @ v)).mul_(2 / len(A))

    def statistics(self, A: Tensor, b: Tensor) -> Iterator[Tensor]:
        """The normal equations (AᵀA, some rows at a time, Aᵀb, bᵀb), d² + d + 1 in all; none for large d."""
        import torch

        if self.dim > LARGEST_SOLVED:
            return
        A, b = A.cpu().double(), b.cpu().double()
        step = max(1, PIECE // self.dim)
        for start in range(0, self.dim, step):
            yield (A[:, start : start + step].T @ A).ravel()
        yield torch.cat([A.T @ b, (b @ b)[None]])

    def minimum(self, total: Tensor | None = None) -> tuple[Tensor, float] | None:
        """Solves M x = c; of several minimisers (fewer rows than parameters) the one of least norm."""
        import torch

        if total is None:
            return None
        M, c, b2 = total.split([self.dim**2, self.dim, 1])
        M = M.view(self.dim, self.dim)
        x = torch.linalg.lstsq(M, c[:, None], driver="gelsd").solution[:, 0]
        return x, float(x @ (M @ x) - 2 * (c @ x) + b2)
