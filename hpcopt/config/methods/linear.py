"""Settings of methods for linear models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hpcopt.config.base import Count, Fraction, Positive, Table, Whole


class MarginsTable(Table):
    """Mixed into every method that needs the margins of a linear model."""

    kinds = ("logistic", "squared_hinge", "least_squares")

    def rows_a_round(self, rows: int, batch: int) -> int:
        """See `Table`: these need all rows."""
        return rows


class SpanTable(MarginsTable):
    """How f is minimised over a few directions with kept margins; mixed into every method that does so."""

    fixed = frozenset({"keep"})
    keep: Count | Literal["auto"] = "auto"
    """directions that are kept from round to round, with their margins: as many numbers per row and d/P per
    rank, and about half their square in a sum per Newton step; "auto": √(d/5), at least 8, at most 40"""
    diagonal_every: Count = 30
    """passes between computations of the Hessian's diagonal, each of them a pass; the first is after 4"""
    margins_every: Count = 20
    """rounds between computations of the margins from the model, against rounding; each is half a pass"""


class LocalModelsTable(MarginsTable):
    """How workers minimise models of the objective; mixed into every method that averages such steps."""

    approximation: Literal["quadratic", "hybrid", "nonlinear", "linear", "adaptive"] = "quadratic"
    """a worker's model of f around w, whose gradient there is ∇f(w), and whose curvature is that of its rows:
    scaled to all rows at w ("quadratic") or everywhere ("nonlinear"), scaled at w and its own elsewhere
    ("hybrid"), or only its own ("linear"); "adaptive": quadratic, the average being one of the directions of
    `common_directions`, in the rounds in which it pays"""
    inner_iterations: Count = 10
    """k̂: what a worker spends on its model in a round: conjugate-gradient iterations in all, or, with "svrg"
    and "sgd", passes through its rows"""
    inner_solver: Literal["auto", "cg", "tron", "svrg", "sgd"] = "auto"
    """cg: conjugate gradients, for "quadratic" alone; tron: Newton steps in a trust region; svrg, sgd: one
    row after the other, for "linear" alone; auto: cg where it applies, else tron"""
    inner_lr: Positive | None = None
    """learning rate of svrg, sgd and the warm start, for f over its rows; from their norms if not given"""
    combination: Literal["uniform", "rows"] = "uniform"
    """weights of the workers' steps: equal for all that have rows, or in proportion to these"""
    angle: Fraction = 0.0
    """cos θ: a worker whose step has a smaller cosine with −∇f gives −∇f instead; 0: where f does not fall"""

    @model_validator(mode="after")
    def _the_solver_fits(self) -> LocalModelsTable:
        solver, model = self.inner_solver, self.approximation
        if solver == "cg" and model not in ("quadratic", "adaptive"):
            raise ValueError(
                f'inner_solver = "cg" solves approximation = "quadratic" only; for "{model}" take "tron"'
            )
        if solver in ("svrg", "sgd") and model != "linear":
            raise ValueError(
                f'inner_solver = "{solver}" is for approximation = "linear" only; for "{model}" take "auto"'
            )
        return self


class FADLTable(LocalModelsTable, SpanTable):
    """Workers minimise models of the whole objective, their steps are averaged (FADL, JMLR 19(74) 2018)."""

    fixed = SpanTable.fixed | {"approximation"}
    tolerance: Fraction = 0.0
    """ε: the run ends where ‖∇f(w)‖ ≤ ε times what it was in the first round that computed it; 0: never"""
    warm_start: Whole = 0
    """the first round is so many epochs of each worker's own SGD, averaged; 0: none"""
    cost_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    """adaptive: what a round with the workers' directions costs, in rounds without; 2 where passes are what
    costs, more where local work counts, too"""

    @model_validator(mode="after")
    def _adaptive_starts_at_zero(self) -> FADLTable:
        if self.approximation == "adaptive" and self.warm_start:
            raise ValueError('warm_start: approximation = "adaptive" has none; leave this key out')
        return self


class CommonDirectionsTable(SpanTable):
    """The true objective minimised over the gradient and a few directions that are kept (SESOP, 2005)."""


class TRONTable(MarginsTable):
    """Newton's method by conjugate gradients on all rows of a linear model (TRON, TERA; JMLR 9, 2008)."""

    preconditioner: Literal["none", "diagonal"] = "none"
    """diagonal: LIBLINEAR's, 0.99 I + 0.01 times the Hessian's diagonal, for one more pass per round"""
    cg_tolerance: Fraction = 0.1
    """a step ends where the residual of Newton's equation is so many times the gradient"""
    cg_iterations: Count = 1000
    """the most conjugate-gradient iterations of a step, each of them a pass"""


class LBFGSTable(Table):
    """The last steps tell the curvature (L-BFGS, Math. Prog. 45, 1989)."""

    fixed = frozenset({"memory"})
    memory: Count = 10
    """m: pairs of steps and changes of the gradient that are kept, 2m vectors on every rank"""
    wolfe: Annotated[float, Field(gt=1e-4, lt=1)] | Literal["auto"] = "auto"
    """how small the slope at the end of a step has to be, relative to that at its beginning; "auto": 0.1 on a
    linear model, where trials cost no pass, else 0.9"""


class AveragingTable(MarginsTable):
    """Every worker minimises its own objective, once, and the models are averaged; a linear model."""

    combination: Literal["rows", "uniform"] = "rows"
    """weights of the workers' models: in proportion to their rows, or equal for all that have some"""
    inner_tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """a worker has its minimum where the gradient is so many times what it was at 0"""


class CoCoATable(MarginsTable):
    """Workers ascend the dual of a linear model on rows of their own (CoCoA+, JMLR 18(230), 2018)."""

    local_passes: Count = 10
    """how often a worker goes through its rows in a round"""
