"""Heterogeneous linear regression with a known optimum (METHODS section 1, RegTop-k)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

from hpcopt.config.problems import LinearRegressionTable
from hpcopt.math.flat import Layout
from hpcopt.math.streams import stream
from hpcopt.problems.base import Problem, checked, worker_weights
from hpcopt.problems.batches import Batches

if TYPE_CHECKING:
    from torch import Tensor

    from hpcopt.problems.base import Draw, Part, Ready, Share

LARGEST_SOLVED = 2048
"""dimension up to which the optimum is found from the normal equations (d² numbers per worker)"""


class LinearRegression:
    """The description of the problem for all workers.

    | symbol | shape  | meaning |
    |--------|--------|---------|
    | A_n    | (D, d) | N(0, 1) |
    | u_n    | scalar | N(0, spread): the worker's mean parameter; ``spread`` is a variance |
    | t_n    | (d,)   | u_n·1 + N(0, I): the worker's true parameter |
    | b_n    | (D,)   | A_n t_n + N(0, noise): the targets; ``noise`` is a variance |
    | f_n    | scalar | (1/D) ‖A_n x − b_n‖² |
    """

    def __init__(
        self,
        workers: int,
        dim: int = 100,
        rows_per_worker: int = 500,
        spread: float = 5.0,
        noise: float = 0.5,
        batch_size: int | Literal["full"] = "full",
        weights: Literal["uniform", "rows"] = "uniform",
    ) -> None:
        """Describes the problem; the arguments are those of `LinearRegressionTable`.

        Raises:
            UserError: an argument is out of its range.
        """
        self.workers = workers
        self.table = checked(
            LinearRegressionTable,
            kind="linear_regression",
            dim=dim,
            rows_per_worker=rows_per_worker,
            spread=spread,
            noise=noise,
            batch_size=batch_size,
            weights=weights,
        )

    @classmethod
    def from_table(cls, table: LinearRegressionTable, workers: int) -> LinearRegression:
        """The problem of a config file."""
        return cls(workers, **table.model_dump(exclude={"kind"}))

    def bind(self, share: Share) -> LinearRegressionProblem:
        """This process's part."""
        return LinearRegressionProblem(self.table, share)


class LinearRegressionProblem(Problem):
    """The workers here: their rows A_n and targets b_n."""

    def __init__(self, table: LinearRegressionTable, share: Share) -> None:
        """Draws the rows of the workers here; a worker's rows depend on the seed and its number alone."""
        D, N = table.rows_per_worker, share.total
        self.share = share
        self.layout = Layout.of([("x", (table.dim,))])
        self.weights = worker_weights(table.weights, [D] * N, share)
        self.rows = torch.full((share.n,), D)
        self.total_rows = N * D
        self.buffers = torch.empty(share.n, 0, dtype=share.dtype, device=share.device)
        self._batches = Batches(share, [D] * share.n, table.batch_size)
        # one tensor per worker, each aligned by itself: see `hpcopt.problems.base.row`
        self._data = [_draw_data(table, worker, share) for worker in share.workers]

    def initial(self) -> Tensor:
        """Uniform between −0.1 and 0.1, (d,)."""
        start = stream(self.share.seed, "initial").uniform(-0.1, 0.1, self.dim)
        return torch.tensor(start, dtype=self.share.dtype, device=self.share.device)

    def batch_rows(self, i: int, draw: Draw | None) -> int:
        """How many rows worker i (from 0 here) uses in a draw."""
        return self._batches.count(i, draw)

    def statistics(self) -> Tensor | None:
        """Normal equations ω_n (AᵀA, Aᵀb, bᵀb)/D, (n, d² + d + 1) float64 on the CPU; None for large d."""
        if self.dim > LARGEST_SOLVED:
            return None
        out = torch.empty(self.share.n, self.dim**2 + self.dim + 1, dtype=torch.float64)
        for line, (A, b), weight in zip(out, self._data, self.weights.tolist(), strict=True):
            A64, b64 = A.cpu().double(), b.cpu().double()
            torch.cat([(A64.T @ A64).ravel(), A64.T @ b64, (b64 @ b64)[None]], out=line)
            line *= weight / len(b)
        return out

    def settle(self, total: Tensor) -> None:
        """Solves M x = c; of several minimisers (fewer rows than parameters) the one of least norm."""
        M, c, b2 = total.cpu().double().split([self.dim**2, self.dim, 1])
        M = M.view(self.dim, self.dim)
        x = torch.linalg.lstsq(M, c[:, None], driver="gelsd").solution[:, 0]
        self.optimum = x.to(self.share.device)
        self.optimal_value = float(x @ (M @ x) - 2 * (c @ x) + b2)

    def _loss(self, i: int, x: Tensor, draw: Draw | None) -> Tensor:
        A, b = self._batch(i, draw)
        return (A @ x - b).square().mean()

    def _add_gradient(
        self,
        i: int,
        x: Tensor,
        draw: Draw | None,
        part: Part,
        scale: float,
        out: Tensor,
        ready: Ready | None = None,
    ) -> None:
        if out.numel():  # there are no private parameters
            A, b = self._batch(i, draw)
            out.add_(A.T @ (A @ x - b), alpha=2 * scale / len(b))

    def _hvp(self, i: int, x: Tensor, v: Tensor, draw: Draw | None) -> Tensor:
        A, _ = self._batch(i, draw)
        return (A.T @ (A @ v)).mul_(2 / len(A))

    def _batch(self, i: int, draw: Draw | None) -> tuple[Tensor, Tensor]:
        A, b = self._data[i]
        rows = self._batches.select(i, draw)
        return (A, b) if rows is None else (A[rows], b[rows])


def _draw_data(table: LinearRegressionTable, worker: int, share: Share) -> tuple[Tensor, Tensor]:
    """A_n (D, d) and b_n (D,) in the share's dtype, drawn in float64."""
    generator = stream(share.seed, "linear_regression", worker)
    D, d = table.rows_per_worker, table.dim
    truth = math.sqrt(table.spread) * generator.standard_normal() + generator.standard_normal(d)
    A = generator.standard_normal((D, d))
    b = A @ truth + math.sqrt(table.noise) * generator.standard_normal(D)
    return (
        torch.tensor(A, dtype=share.dtype, device=share.device),
        torch.tensor(b, dtype=share.dtype, device=share.device),
    )
