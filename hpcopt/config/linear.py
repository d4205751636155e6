"""The [problem] tables of linear models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hpcopt.config.base import Count, Positive
from hpcopt.config.problems import PartitionTable, load_place

if TYPE_CHECKING:
    from hpcopt.problems.base import Recipe


class LinearTable(PartitionTable):
    """λ/2 ‖w‖² + Σ l(w·x, y) over all rows, dense or sparse: a sum, not a mean."""

    fixed = PartitionTable.fixed | {"dataset", "positive", "bias", "regularisation"}
    dataset: str = "fashion-mnist"
    """"fashion-mnist", "digits", or the path of a file made by `hpcopt data import`"""
    positive: int | list[int] | None = None
    """the class or classes whose label is +1, all others being −1; not needed where labels are −1 and +1, or
    0 and 1"""
    bias: bool = True
    """a constant column, regularised like the others"""
    regularisation: Positive = 1e-4
    """λ/n: of λ/2 ‖w‖², divided by the number of training rows n"""
    optimum: Positive | None = None
    """f*, the smallest value of the objective, from `hpcopt data optimum`: for gap and relative_gap"""
    weights: Literal["rows"] = "rows"
    """ω of the objective Σ ω_n f_n: all rows count the same, so that a worker counts by its rows"""
    batch_size: Count | Literal["full"] = "full"
    """rows per mini-batch and worker, for methods that use such"""

    def recipe(self) -> Recipe:
        """The problem; raises `UserError` where there is no such data set, or it has other labels."""
        kind = type(self).__name__.removesuffix("Table")
        recipe: Recipe = load_place(f"hpcopt.problems.linear:{kind}").of(self)
        return recipe


class LogisticTable(LinearTable):
    """Logistic regression: l = log(1 + exp(−y z)), labels ±1."""


class SquaredHingeTable(LinearTable):
    """A linear support vector machine: l = max(0, 1 − y z)², labels ±1."""


class LeastSquaresTable(LinearTable):
    """Ridge regression: l = ½(z − y)², any numbers as targets."""
