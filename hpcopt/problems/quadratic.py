"""A quadratic with a chosen spectrum, the same on every worker: the textbook case for rates and stability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import FiniteFloat, model_validator

from hpcopt.config.base import Count
from hpcopt.problems.objective import Objective

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 8192
"""the largest dimension: H is a dense (d, d) matrix"""

OUTLIERS = 10


class Quadratic(Objective):
    """f(x) = ½ xᵀHx on every worker, H = Q diag(λ) Qᵀ with a rotation Q drawn from the seed.

    So the optimum is 0 with value 0, unless an eigenvalue is 0 or negative: then there is none, and no
    ``gap`` or ``distance``. A single eigenvalue λ gives f = λx²/2 exactly. A worker's gradient counts as one
    sample gradient. Named spectra, where i = 1 … d:

    - ``"outliers"``: 10 eigenvalues from 1000 down to 100 (geometric), the others evenly from 1 to 0.1;
    - ``"power"``: λ_i = 1/i;
    - ``"geometric"``: from 1 down to 1e-4, a condition number of 1e4.
    """

    batch_size: ClassVar[Literal["full"]] = "full"  # type: ignore[misc]  # without rows it is no key
    eigenvalues: list[FiniteFloat] | Literal["outliers", "power", "geometric"] = "outliers"
    """the spectrum, or a named one of length dim"""
    dim: Count | None = None
    """parameters d; needed for a named spectrum (100 if not given), else the length of the list"""

    @model_validator(mode="after")
    def _dim_fits(self) -> Quadratic:
        if isinstance(self.eigenvalues, list) and self.dim not in (None, len(self.eigenvalues)):
            raise ValueError(f"dim = {self.dim}, but eigenvalues has {len(self.eigenvalues)} entries")
        if not 1 <= self._d <= LARGEST:
            raise ValueError(
                f"dim = {self._d}: the quadratic keeps a dense rotated matrix, allowed are 1 to {LARGEST}"
            )
        return self

    @property
    def _d(self) -> int:
        return len(self.eigenvalues) if isinstance(self.eigenvalues, list) else self.dim or 100

    def spectrum(self) -> Tensor:
        """The eigenvalues λ, (d,) float64 on the CPU."""
        import torch

        if isinstance(self.eigenvalues, list):
            return torch.tensor(self.eigenvalues, dtype=torch.float64)
        if self.eigenvalues == "power":
            return 1 / torch.arange(1, self._d + 1, dtype=torch.float64)
        if self.eigenvalues == "geometric":
            return torch.logspace(0, -4, self._d, dtype=torch.float64)
        few = min(OUTLIERS, self._d)
        outliers = torch.logspace(3, 2, few, dtype=torch.float64)
        return torch.cat([outliers, torch.linspace(1, 0.1, self._d - few, dtype=torch.float64)])

    def common(self, seed: int) -> tuple[Tensor]:
        """H, (d, d); Q is uniform over the rotations and reflections."""
        import torch

        from hpcopt.math.streams import stream

        gaussian = torch.from_numpy(stream(seed, "quadratic").standard_normal((self._d, self._d)))
        Q, R = torch.linalg.qr(gaussian)
        Q *= R.diagonal().sign()  # else LAPACK's choice of signs, which is not uniform, would show
        H = (Q * self.spectrum()) @ Q.T
        return ((H + H.T) / 2,)

    def initial(self, seed: int) -> Any:
        """A standard normal point, (d,)."""
        from hpcopt.math.streams import stream

        return stream(seed, "initial").standard_normal(self._d)

    def loss(self, x: Tensor, H: Tensor) -> Tensor:
        """See `Objective`."""
        return 0.5 * (x @ (H @ x))

    def gradient(self, x: Tensor, H: Tensor) -> Tensor:
        """See `Objective`."""
        return H @ x

    def hvp(self, x: Tensor, v: Tensor, H: Tensor) -> Tensor:
        """See `Objective`."""
        return H @ v

    def minimum(self, total: Tensor | None = None) -> tuple[Any, float] | None:
        """The origin, where it is the only one."""
        return ([0.0] * self._d, 0.0) if float(self.spectrum().min()) > 0 else None
