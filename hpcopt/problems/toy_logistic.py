"""The two-parameter toy on which Top-k stalls (Bereyhi et al., RegTop-k, arXiv 2501.05633)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.functional import softplus

from hpcopt.config.problems import ToyLogisticTable
from hpcopt.errors import UserError
from hpcopt.math.flat import Layout
from hpcopt.problems.base import Problem, checked, worker_weights

if TYPE_CHECKING:
    from torch import Tensor

    from hpcopt.problems.base import Draw, Part, Ready, Share

LINEAR = 40.0
"""from here on softplus(t) is t to the last bit of a float64; torch's own threshold of 20 is off by 2e-9"""


class ToyLogistic:
    """Logistic loss on one row per worker: the large coordinates cancel, all progress is in the small one.

    | symbol | shape  | meaning |
    |--------|--------|---------|
    | a_n    | (2,)   | (spread, 1) on workers with an even number, else (−spread, 1); the label is 1 |
    | f_n    | scalar | log(1 + exp(−a_n·x)) |

    The start is (0, 1). The infimum 0 is not attained, so there is no optimum.
    """

    def __init__(
        self,
        workers: int,
        spread: float = 100.0,
        weights: Literal["uniform", "rows"] = "uniform",
    ) -> None:
        """Describes the problem.

        Args:
            workers: N, even.
            spread: the size of the coordinate that cancels.
            weights: ω_n; every worker has one row, so both kinds are equal weights.

        Raises:
            UserError: an argument is out of its range.
        """
        if workers < 2 or workers % 2:
            raise UserError(
                f"run.workers = {workers}: toy_logistic pairs workers whose large coordinates cancel, "
                "allowed are even numbers from 2"
            )
        self.workers = workers
        self.table = checked(ToyLogisticTable, kind="toy_logistic", spread=spread, weights=weights)

    @classmethod
    def from_table(cls, table: ToyLogisticTable, workers: int) -> ToyLogistic:
        """The problem of a config file. Raises `UserError` where the number of workers is odd."""
        return cls(workers, table.spread, table.weights)

    def bind(self, share: Share) -> ToyLogisticProblem:
        """This process's part."""
        return ToyLogisticProblem(self.table, share)


class ToyLogisticProblem(Problem):
    """The workers here: their rows a_n (2,)."""

    def __init__(self, table: ToyLogisticTable, share: Share) -> None:
        """Makes the rows of the workers here."""
        self.share = share
        self.layout = Layout.of([("x", (2,))])
        self.weights = worker_weights(table.weights, [1] * share.total, share)
        self.rows = torch.ones(share.n, dtype=torch.int64)
        self.total_rows = share.total
        self.buffers = torch.empty(share.n, 0, dtype=share.dtype, device=share.device)
        # one tensor per worker, each aligned by itself: see `hpcopt.problems.base.row`
        self._data = [
            torch.tensor(
                [-table.spread if n % 2 else table.spread, 1], dtype=share.dtype, device=share.device
            )
            for n in share.workers
        ]

    def initial(self) -> Tensor:
        """The paper's start (0, 1)."""
        return torch.tensor([0, 1], dtype=self.share.dtype, device=self.share.device)

    def batch_rows(self, i: int, draw: Draw | None) -> int:
        """One: a worker's only row."""
        return 1

    def _loss(self, i: int, x: Tensor, draw: Draw | None) -> Tensor:
        return softplus(-(self._data[i] @ x), threshold=LINEAR)

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
            a = self._data[i]
            # scaled before the sum: fused with it, ω_n = 1/6 would leave a rest of what cancels, and it grows
            out.sub_(scale * torch.sigmoid(-(a @ x)) * a)

    def _hvp(self, i: int, x: Tensor, v: Tensor, draw: Draw | None) -> Tensor:
        a = self._data[i]
        margin = a @ x
        return torch.sigmoid(margin) * torch.sigmoid(-margin) * (a @ v) * a
