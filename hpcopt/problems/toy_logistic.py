"""The two-parameter toy on which Top-k stalls for long (Bereyhi et al., RegTop-k, arXiv 2501.05633)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hpcopt.config.base import Positive
from hpcopt.errors import UserError
from hpcopt.problems.objective import Objective

if TYPE_CHECKING:
    from torch import Tensor

LINEAR = 40.0
"""from here on softplus(t) is t to the last bit of a float64; torch's own threshold of 20 is off by 2e-9"""


class ToyLogistic(Objective):
    """Logistic loss on one row per worker: the large coordinates cancel, all progress is in the small one.

    | symbol | shape  | meaning |
    |--------|--------|---------|
    | a_n    | (2,)   | (spread, 1) on workers with an even number, else (−spread, 1); the label is 1 |
    | f_n    | scalar | log(1 + exp(−a_n·x)) |

    The infimum 0 is not attained, so there is no optimum.
    """

    batch_size: ClassVar[Literal["full"]] = "full"  # type: ignore[misc]  # with one row it is no key
    spread: Positive = 100.0
    """size of the first coordinate of a row: + on workers with an even number, - on the others"""

    def __init__(self, /, workers: int, *values: Any, **keys: Any) -> None:
        """See `ProblemTable`; ``workers`` is even."""
        if workers < 2 or workers % 2:
            raise UserError(
                f"run.workers = {workers}: toy_logistic pairs workers whose large coordinates cancel, "
                "allowed are even numbers from 2"
            )
        super().__init__(workers, *values, **keys)  # type: ignore[call-arg, arg-type]

    def data(self, worker: int, seed: int) -> tuple[Any]:
        """a_n, the only row."""
        return ([[-self.spread if worker % 2 else self.spread, 1.0]],)

    def initial(self, seed: int) -> Any:
        """The paper's start (0, 1)."""
        return [0.0, 1.0]

    def loss(self, x: Tensor, A: Tensor) -> Tensor:
        """See `Objective`."""
        from torch.nn.functional import softplus

        return softplus(-(A[0] @ x), threshold=LINEAR)

    def add_gradient(self, out: Tensor, scale: float, x: Tensor, A: Tensor) -> None:
        """See `Objective`."""
        a = A[0]
        # scaled before the sum: fused with it, ω_n = 1/6 would leave a rest of what cancels, and it grows
        out.sub_(scale * (-(a @ x)).sigmoid() * a)

    def hvp(self, x: Tensor, v: Tensor, A: Tensor) -> Tensor:
        """See `Objective`."""
        a = A[0]
        margin = a @ x
        return margin.sigmoid() * (-margin).sigmoid() * (a @ v) * a
