"""The [problem] table, one class per kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from hpcopt.config.base import Count, Fraction, NonNegative, Positive, Table


class ProblemTable(Table):
    """What every problem has."""

    fixed = frozenset({"weights"})
    kind: str
    """which problem, or "package.module:factory" for your own"""
    weights: Literal["uniform", "rows"] = "uniform"
    """ω of the objective Σ ω_n f_n: equal for all workers, or proportional to their rows"""


class LinearRegressionTable(ProblemTable):
    """Heterogeneous linear regression, mean squared error, known optimum."""

    fixed = ProblemTable.fixed | {"dim", "rows_per_worker", "spread", "noise"}
    dim: Count = 100
    """parameters d"""
    rows_per_worker: Count = 500
    """rows D of each worker"""
    spread: NonNegative = 5.0
    """variance of the workers' mean parameter u_n: how different they are"""
    noise: NonNegative = 0.5
    """variance of the noise on the targets"""
    batch_size: Count | Literal["full"] = "full"
    """rows per mini-batch and worker"""


class QuadraticTable(ProblemTable):
    """f(x) = ½ xᵀHx with given eigenvalues, rotated by the seed, the same on every worker."""

    fixed = ProblemTable.fixed | {"eigenvalues", "dim"}
    eigenvalues: list[Positive] | Literal["outliers", "power", "geometric"] = "outliers"
    """the spectrum, or a named one of length dim"""
    dim: Count | None = None
    """parameters d; needed for a named spectrum (100 if not given), else the length of the list"""

    @model_validator(mode="after")
    def _dim_matches(self) -> QuadraticTable:
        if isinstance(self.eigenvalues, list) and self.dim not in (None, len(self.eigenvalues)):
            raise ValueError(f"dim = {self.dim}, but eigenvalues has {len(self.eigenvalues)} entries")
        return self


class ToyLogisticTable(ProblemTable):
    """Logistic loss, one row (±spread, 1) per worker, an even number of workers."""

    fixed = ProblemTable.fixed | {"spread"}
    spread: Positive = 100.0
    """size of the first coordinate of a row: + on workers with an even number, - on the others"""


class PartitionTable(ProblemTable):
    """How rows of a data set are spread over the workers; mixed into every problem that has one."""

    fixed = ProblemTable.fixed | {"partition", "alpha", "classes_per_worker", "samples_per_worker"}
    partition: Literal["iid", "dirichlet", "classes", "unequal"] = "iid"
    """iid: shuffled evenly; dirichlet: label proportions from Dir(alpha); classes: each worker sees only
    classes_per_worker classes; unequal: iid with sizes from Dir(alpha)"""
    alpha: Positive = 0.5
    """concentration of the Dirichlet distribution: small is heterogeneous"""
    classes_per_worker: Count = 2
    """for partition = "classes" """
    samples_per_worker: Count | None = None
    """exactly so many training rows per worker (all rows are shared out if not given)"""
    batch_size: Count | Literal["full"] = 32
    """rows per mini-batch and worker"""


class NetworkTable(PartitionTable):
    """A neural network on images; cross-entropy."""

    fixed = PartitionTable.fixed | {
        *("model", "hidden", "private", "regularisation", "logit_adjustment", "new_workers")
    }
    dataset: str = "digits"
    """"fashion-mnist", "digits", or the path of a file made by `hpcopt data import`"""
    model: Literal["mlp", "cnn", "alexnet", "resnet18"] = "mlp"
    """the network"""
    hidden: list[Count] = Field(default=[256, 128])
    """mlp: widths of the hidden layers; the last layer is the head"""
    dropout: Fraction = 0.0
    """cnn, alexnet: dropout before the head"""
    private: list[str] = Field(default=["head.*"])
    """name patterns of the parameters that methods with private parts keep on the worker"""
    regularisation: NonNegative = 0.0
    """λ of λ/2 ‖x‖² in every worker's loss"""
    logit_adjustment: Annotated[float, Field(ge=0, le=100)] = 0.0
    """τ of τ log π_n, added to worker n's logits in training and where it tests a model of its own; π_n: how
    often its rows have each class. With 1, what is shared need not learn who has what (arXiv 2007.07314)"""
    new_workers: Annotated[int, Field(ge=0)] = 0
    """workers beside run.workers that get rows, which the others then do not have, but take no part in
    training: at each evaluation each of them fits the private parameters to its own rows, on the
    representation of the run's one model (of the mean of the workers' own models), which stays as it is;
    measured as new_worker_accuracy, …"""
    new_worker_steps: Count = 50
    """SGD steps with which a new worker does so, from the values that all workers began with"""
    new_worker_lr: Positive = 0.1
    """learning rate of these steps, whatever the method"""


class CustomTable(ProblemTable):
    """Your own: kind = "package.module:factory"; every other key is passed to the factory."""

    model_config = ConfigDict(extra="allow")
    kind: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    """the factory, called as factory(workers=N, **keys); it returns a recipe"""


PROBLEM_TABLES: dict[str, type[ProblemTable]] = {
    "linear_regression": LinearRegressionTable,
    "quadratic": QuadraticTable,
    "toy_logistic": ToyLogisticTable,
    "network": NetworkTable,
}
