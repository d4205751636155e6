"""A quadratic with a chosen spectrum, the same on every worker: the textbook case for rates and stability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from hpcopt.config.problems import QuadraticTable
from hpcopt.errors import UserError
from hpcopt.math.flat import Layout
from hpcopt.math.streams import stream
from hpcopt.problems.base import Problem, checked, worker_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hpcopt.problems.base import Draw, Part, Ready, Share

LARGEST = 8192
"""the largest dimension: H is a dense (d, d) matrix"""

OUTLIERS = 10


class Quadratic:
    """f(x) = ½ xᵀHx on every worker, H = Q diag(λ) Qᵀ with a rotation Q drawn from the seed.

    So the optimum is 0 with value 0, and a single eigenvalue λ gives f = λx²/2 exactly. Named spectra, where
    i = 1 … d:

    - ``"outliers"``: 10 eigenvalues from 1000 down to 100 (geometric), the others evenly from 1 to 0.1;
    - ``"power"``: λ_i = 1/i;
    - ``"geometric"``: from 1 down to 1e-4, a condition number of 1e4.
    """

    def __init__(
        self,
        workers: int,
        eigenvalues: Sequence[float] | Literal["outliers", "power", "geometric"] = "outliers",
        dim: int | None = None,
        weights: Literal["uniform", "rows"] = "uniform",
    ) -> None:
        """Describes the problem.

        Args:
            workers: N.
            eigenvalues: λ, each above 0, or the name of a spectrum.
            dim: d; for a named spectrum 100 if not given, else the number of eigenvalues.
            weights: ω_n; every worker counts as one row, so both kinds are equal weights.

        Raises:
            UserError: an argument is out of its range.
        """
        values = eigenvalues if isinstance(eigenvalues, str) else [float(value) for value in eigenvalues]
        self.workers = workers
        self.table = checked(QuadraticTable, kind="quadratic", eigenvalues=values, dim=dim, weights=weights)
        self.eigenvalues = _spectrum(self.table)
        if not 1 <= len(self.eigenvalues) <= LARGEST:
            raise UserError(
                f"problem.dim = {len(self.eigenvalues)}: the quadratic keeps a dense rotated matrix, "
                f"allowed are 1 to {LARGEST}"
            )

    @classmethod
    def from_table(cls, table: QuadraticTable, workers: int) -> Quadratic:
        """The problem of a config file. Raises `UserError` where dim is too large."""
        return cls(workers, table.eigenvalues, table.dim, table.weights)

    def bind(self, share: Share) -> QuadraticProblem:
        """This process's part."""
        return QuadraticProblem(self.eigenvalues, share)


class QuadraticProblem(Problem):
    """The workers here, who all have the same H (d, d)."""

    def __init__(self, eigenvalues: Tensor, share: Share) -> None:
        """Rotates the spectrum.

        Args:
            eigenvalues: λ, (d,) float64.
            share: the workers here.
        """
        d = len(eigenvalues)
        self.share = share
        self.layout = Layout.of([("x", (d,))])
        self.weights = worker_weights("uniform", [1] * share.total, share)
        self.rows = torch.ones(share.n, dtype=torch.int64)
        self.total_rows = share.total
        self.buffers = torch.empty(share.n, 0, dtype=share.dtype, device=share.device)
        self.optimum = torch.zeros(d, dtype=torch.float64, device=share.device)
        self.optimal_value = 0.0
        self._H = _rotated(eigenvalues, share.seed).to(share.device, share.dtype)

    def initial(self) -> Tensor:
        """A standard normal point, (d,)."""
        start = stream(self.share.seed, "initial").standard_normal(self.dim)
        return torch.tensor(start, dtype=self.share.dtype, device=self.share.device)

    def batch_rows(self, i: int, draw: Draw | None) -> int:
        """One: a gradient of a worker counts as one sample gradient."""
        return 1

    def _loss(self, i: int, x: Tensor, draw: Draw | None) -> Tensor:
        return 0.5 * (x @ (self._H @ x))

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
            out.add_(self._H @ x, alpha=scale)

    def _hvp(self, i: int, x: Tensor, v: Tensor, draw: Draw | None) -> Tensor:
        return self._H @ v


def _spectrum(table: QuadraticTable) -> Tensor:
    """The eigenvalues of a table, (d,) float64, on the CPU."""
    if not isinstance(table.eigenvalues, str):
        return torch.tensor(table.eigenvalues, dtype=torch.float64)
    d = table.dim or 100
    if table.eigenvalues == "power":
        return 1 / torch.arange(1, d + 1, dtype=torch.float64)
    if table.eigenvalues == "geometric":
        return torch.logspace(0, -4, d, dtype=torch.float64)
    few = min(OUTLIERS, d)
    outliers = torch.logspace(3, 2, few, dtype=torch.float64)
    return torch.cat([outliers, torch.linspace(1, 0.1, d - few, dtype=torch.float64)])


def _rotated(eigenvalues: Tensor, seed: int) -> Tensor:
    """Q diag(λ) Qᵀ, (d, d) float64; Q is uniform over the rotations and reflections."""
    d = len(eigenvalues)
    gaussian = torch.from_numpy(stream(seed, "quadratic").standard_normal((d, d)))
    Q, R = torch.linalg.qr(gaussian)
    Q *= R.diagonal().sign()  # else LAPACK's choice of signs, which is not uniform, would show
    H = (Q * eigenvalues) @ Q.T
    return (H + H.T) / 2
