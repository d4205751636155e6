"""The [problem] tables of linear models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from hpcopt.config.base import Count, Positive
from hpcopt.config.problems import PartitionTable

if TYPE_CHECKING:
    from hpcopt.problems.base import Recipe


class LinearTable(PartitionTable):
    """λ/2 ‖w‖² + Σ l(w·x, y) over all rows, dense or sparse: a sum, not a mean."""

    fixed = PartitionTable.fixed | {"positive", "bias", "regularisation"}
    weights: Literal["uniform", "rows"] = "rows"
    """ω of the objective Σ ω_n f_n: proportional to the workers' rows, nothing else"""
    dataset: str = "fashion-mnist"
    """"fashion-mnist", "digits", or the path of a file made by `hpcopt data import`"""
    positive: int | list[int] | None = None
    """the class or classes whose label is +1, all others being −1; not needed where labels are −1 and +1, or
    0 and 1"""
    bias: bool = True
    """a constant column, regularised like the others"""
    regularisation: Positive = 1e-4
    """λ/n: of λ/2 ‖w‖², divided by the number of training rows n"""
    optimum: float | None = None
    """f*, the smallest value of the objective, from `hpcopt data optimum`: for gap and relative_gap"""
    batch_size: Count | Literal["full"] = "full"
    """rows per mini-batch and worker, for methods that use such"""

    @model_validator(mode="before")
    @classmethod
    def _weights_are_the_rows(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("weights", "rows") != "rows":  # what is written out may be read again
            raise ValueError("weights: in a linear problem all rows count the same; leave this key out")
        return values

    def recipe(self) -> Recipe:
        """The problem; raises `UserError` where there is no such data set, or it has other labels."""
        recipes = import_module("hpcopt.problems.linear").LINEAR
        recipe: Recipe = recipes[type(self)].of(self)
        return recipe


class LogisticTable(LinearTable):
    """Logistic regression: l = log(1 + exp(−y z)), labels ±1."""


class SquaredHingeTable(LinearTable):
    """A linear support vector machine: l = max(0, 1 − y z)², labels ±1."""


class LeastSquaresTable(LinearTable):
    """Ridge regression: l = ½(z − y)², any numbers as targets."""
