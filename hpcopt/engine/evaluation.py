"""What a state is worth: numbers of the whole run and of every worker, the same on every rank."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hpcopt.engine.own_metrics import check_names
from hpcopt.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hpcopt.comm.ports import Reducer
    from hpcopt.engine.ranks import Floats, Ranks
    from hpcopt.methods.base import Method
    from hpcopt.problems.base import Evaluation, Problem

Values = dict[str, float]
Rows = dict[str, "Floats"]

RESERVED = ("round", "seconds", "epochs", "gradients", "bytes_sent", "bytes_workers", "passes", "peak_memory")
"""metrics of what a run costs"""
OTHERS = ("global", "before_mixing")
"""models beside the workers' own that run.evaluate may leave out; those of other names a method wants"""


class Evaluator:
    """Evaluates a method's models. Sums over workers run in their order, so that ranks change no bit.

    Args:
        ranks: all of the run.
        problem, method: what is evaluated.
        reduce: sums over the workers.
        wanted: of run.evaluate.
    """

    def __init__(
        self,
        ranks: Ranks,
        problem: Problem,
        method: Method[Any, Any],
        reduce: Reducer,
        wanted: Sequence[str] = OTHERS,
    ) -> None:
        self._ranks, self._problem, self._method, self._reduce = ranks, problem, method, reduce
        self._wanted = wanted

    def evaluate(self, state: Any, model: torch.Tensor) -> tuple[Values, Rows]:
        """Numbers of the whole run, and those of every worker, (N,). Collective.

        Args:
            state: the method's.
            model: its `Method.model`.
        """
        others = self._method.others(state)
        values, rows = self._at(model)
        if model.ndim > 1 and "global" not in others:
            if "global" in self._wanted or self._problem.newcomers is not None:
                others = {"global": self._mean_row(model)} | others
            values["consensus"] = self._distance(model[:, self._problem.layout.part(self._method.agreed)])
        for name, X in others.items():
            if name in OTHERS and name not in self._wanted:
                continue
            more_values, more_rows = self._at(X)
            values |= {f"{name}_{measure}": value for measure, value in more_values.items()}
            rows |= {f"{name}_{measure}": row for measure, row in more_rows.items()}
        if self._problem.newcomers is not None:
            one = model if model.ndim == 1 else others["global"]
            evaluation = self._problem.newcomers.evaluate(one, self._mean_buffers())
            values |= {f"new_worker_{name}": value for name, value in self._means(evaluation)[0].items()}
        return values | self._of_method(state, values), rows

    def _of_method(self, state: Any, others: Values) -> Values:
        found = self._method.metrics(state)
        try:
            own = {name: float(value) for name, value in found.items()}
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"the method's metrics: {found} are no numbers for the whole run") from None
        check_names(own, (*others, *RESERVED), "the method's metrics")
        different = self._ranks.different(np.nan_to_num(list(own.values())))
        if different:
            raise RuntimeError(f"the method's metrics on ranks {different} are not those of rank 0: {own}")
        return own

    def _at(self, X: torch.Tensor) -> tuple[Values, Rows]:
        problem, common = self._problem, X.ndim == 1
        if common:
            self._check_same(X)
        buffers = self._mean_buffers() if common else None
        evaluation = problem.evaluate(X, buffers)
        if problem.optimum is not None:
            distance = ((X - problem.optimum) ** 2).sum(-1).expand(problem.share.n)
            evaluation.add("distance", distance, torch.ones(problem.share.n))
        values, rows = self._means(evaluation)
        if problem.optimal_value is not None and "loss" in values:
            values["gap"] = values["loss"] - problem.optimal_value
            if problem.optimal_value > 0:
                values["relative_gap"] = values["gap"] / problem.optimal_value
        for name, part in (problem.scores(X, buffers) if problem.measures.test else {}).items():
            values[name] = problem.score(name, torch.from_numpy(self._ranks.rows(part.numpy())))
        personal = {"loss"} if common else set(rows)
        return values, {name: row for name, row in rows.items() if name in personal}

    def _mean_row(self, X: torch.Tensor) -> torch.Tensor:
        """Of one row (m,) per worker, from the (n, m) here; every worker counts the same."""
        return self._reduce.sum(X) / self._problem.share.total

    def _distance(self, X: torch.Tensor) -> float:
        """The mean over the workers of ‖x_i − x̄‖²."""
        mean = self._mean_row(X)
        squares = X.new_zeros(len(X), 1, dtype=torch.float64)
        for square, x_i in zip(squares, X, strict=True):
            square[0] = (x_i - mean).square_().sum(dtype=torch.float64)
        return float(self._reduce.scalars(squares) / self._problem.share.total)

    def _check_same(self, X: torch.Tensor) -> None:
        """A model that all ranks hold must be the same bits everywhere, or nothing that follows is right."""
        numbers = torch.nan_to_num(X)  # ranks may have different nans: that is for the loss to tell
        different = self._ranks.different(numbers.cpu().numpy())
        if different:
            raise RuntimeError(f"the parameters on ranks {different} are not those of rank 0")

    def _means(self, evaluation: Evaluation) -> tuple[Values, Rows]:
        # a rank without any of the workers that evaluated does not know what they measured
        known = [(name, name in evaluation.rows) for name in evaluation.values]
        names = next(filter(None, self._ranks.each(known)), [])
        if not names:
            return {}, {}
        none = torch.empty(0, dtype=torch.float64)
        kinds = evaluation.values, evaluation.weights, evaluation.rows
        measured = [kind.get(name, none) for name, by_rows in names for kind in kinds[: 2 + by_rows]]
        columns = iter(self._ranks.rows(torch.stack(measured, dim=1).numpy()).T)
        rows: Rows = {}
        values: Values = {}
        for name, by_rows in names:
            rows[name] = next(columns)
            values[name] = _mean(rows[name], next(columns))
            if by_rows:
                values[f"{name}_by_rows"] = _mean(rows[name], next(columns))
        return values, rows

    def _mean_buffers(self) -> torch.Tensor | None:
        buffers = self._problem.buffers
        if not buffers.shape[1]:
            return None
        rows = self._ranks.rows(buffers.cpu().double().numpy())
        return torch.from_numpy(rows.mean(0)).to(buffers)


def _mean(row: Floats, weights: Floats) -> float:
    # a worker of weight 0 has nothing to say, and may say so with NaN
    total = float((np.where(weights > 0, row, 0.0) * weights).sum())
    return total / (float(weights.sum()) or math.nan)
