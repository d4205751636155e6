"""Linear models on any data set, dense or sparse: the description of the problem for all workers.

    f(w) = λ/2 ‖w‖² + Σ_i l(w·x_i, y_i) = Σ_p ω_p f_p(w),   f_p(w) = λ/2 ‖w‖² + (n/n_p) Σ_{i of worker p} l

n rows in all, n_p of worker p, ω_p = n_p/n. Losses are summed, as in LIBLINEAR (whose C is 1/λ).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hpcopt.config.linear import LeastSquaresTable, LinearTable, LogisticTable, SquaredHingeTable
from hpcopt.errors import UserError
from hpcopt.math.losses import LogisticLoss, MarginLoss, SquaredHingeLoss, SquaredLoss
from hpcopt.problems.data import Dataset, Partition, array_dataset, given_rows, open_dataset, partition
from hpcopt.problems.linear_rows import Labelled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hpcopt.problems.base import Share
    from hpcopt.problems.linear_problem import LinearProblem

Arrays = tuple[Any, Any]
MOST_SHOWN = 6
"""labels in a message"""


class Linear:
    """A linear model; `Logistic`, `SquaredHinge` and `LeastSquares` say with which loss.

    Attributes:
        workers, table, data: what describes the problem.
        train, test: rows and targets; test is None if there are none.
        loss: l.
        classifies: whether targets have to be −1 and +1.
    """

    keys: ClassVar[type[LinearTable]]
    loss: ClassVar[MarginLoss]
    classifies: ClassVar[bool] = True
    _by_hand: Partition | None = None

    def __init__(
        self,
        train: Arrays | str,
        test: Arrays | None = None,
        *,
        workers: int,
        rows: Sequence[Any] | str | Path | None = None,
        test_rows: Sequence[Any] | None = None,
        **keys: Any,
    ) -> None:
        """Describes a problem.

        Args:
            train: (X, y), an array or tensor (r, …) or a SciPy sparse matrix (r, d), and the targets (r,); or
                the name or path of a data set. Dense bytes are taken for pixels and divided by 255.
            test: the same for test rows.
            workers: N.
            rows: which training rows each of the N workers has, as numbers or as a mask; also none; in place
                of a partition. Or the path of a file (`hpcopt.problems.data.given`).
            test_rows: the same for test rows; even parts of all if None.
            keys: those of `LinearTable`.

        Raises:
            UserError: a key is unknown or out of its range, or data and labels do not fit.
        """
        data = open_dataset(train) if isinstance(train, str) else array_dataset(train, test)
        named: dict[str, Any] = {"rows": str(rows)} if isinstance(rows, str | Path) else {}
        self._describe(self.keys(workers=workers, **keys, **named), data)
        if rows is not None:
            self._by_hand = self._given(rows, test_rows)

    @classmethod
    def of(cls, table: LinearTable) -> Linear:
        """The problem of a config's table."""
        recipe = cls.__new__(cls)
        recipe._describe(table, open_dataset(table.dataset))
        if table.rows is not None:
            recipe._by_hand = recipe._given(table.rows, None)
        return recipe

    def _describe(self, table: LinearTable, data: Dataset) -> None:
        self.workers, self.table, self.data = table.workers, table, data
        self.train = Labelled(data.train, self._targets(data.train.labels, "training"))
        self.test = (
            None if data.test is None else Labelled(data.test, self._targets(data.test.labels, "test"))
        )
        if self.signed and np.ptp(self.train.targets) == 0:
            raise UserError(
                f'[problem] dataset = "{data.name}": all training rows are {self.train.targets[0]:+.0f}'
                f"{self._positive()}; there is nothing to tell apart"
            )

    def _given(self, rows: Sequence[Any] | str | Path, test_rows: Sequence[Any] | None) -> Partition:
        """The rows of each worker; raises `UserError` where they are not, or say nothing."""
        totals = len(self.data.train), None if self.data.test is None else len(self.data.test)
        parts = given_rows(rows, test_rows, totals, self.workers, least=0)
        used = self.train.targets[np.concatenate(parts.train)]
        if len(used) == 0 or (self.signed and np.ptp(used) == 0):
            raise UserError(f"rows: {len(used)} rows in all, and no two different targets among them")
        return parts

    @property
    def signed(self) -> bool:
        """Whether all targets are −1 or +1, and the sign of a margin is a prediction."""
        return self.classifies or self.table.positive is not None

    def bind(self, share: Share) -> LinearProblem:
        """This process's part; reads the rows of its workers.

        Raises:
            UserError: more workers than rows, a partition that the data do not allow, or numbers that are not
                finite.
        """
        from hpcopt.problems.linear_problem import LinearProblem

        return LinearProblem(share, self, self._parts(share.seed))

    def sizes_of_workers(self, seed: int) -> list[tuple[int, int]]:
        """See `hpcopt.problems.base.Recipe`; raises `UserError` as `bind` does."""
        from hpcopt.problems.batches import sizes

        return sizes(map(len, self._parts(seed).train), self.table.batch_size)

    def _parts(self, seed: int) -> Partition:
        table, data = self.table, self.data
        if self._by_hand is not None:
            return self._by_hand
        return partition(
            data.train.labels,
            None if data.test is None else data.test.labels,
            self.workers,
            kind=table.partition,
            alpha=table.alpha,
            classes_per_worker=table.classes_per_worker,
            samples_per_worker=table.samples_per_worker,
            seed=seed,
        )

    def _targets(self, labels: NDArray[Any], which: str) -> NDArray[np.float64]:
        where = f'[problem] dataset = "{self.data.name}"'
        if labels.ndim != 1:
            raise UserError(f"{where}: {which} targets of shape {labels.shape}; one number per row is needed")
        if not np.isfinite(labels).all():
            raise UserError(
                f"{where}: {which} row {int(np.argmin(np.isfinite(labels)))}: its target is not finite"
            )
        if not self.signed:
            return labels.astype(np.float64)
        found = np.unique(labels)
        if self.table.positive is not None:
            return np.where(np.isin(labels, self._chosen(found, where, which)), 1.0, -1.0)
        for negative in (-1, 0):
            if np.isin(found, (negative, 1)).all():
                return np.where(labels == 1, 1.0, -1.0)
        shown = ", ".join(f"{label:g}" for label in found[:MOST_SHOWN]) + (", …" * (len(found) > MOST_SHOWN))
        raise UserError(
            f"{where}: {which} labels are {shown}; allowed without `positive` are −1 and +1, or 0 and 1: "
            "say with positive = 3, or a list, which are +1"
        )

    def _chosen(self, found: NDArray[Any], where: str, which: str) -> NDArray[Any]:
        given = self.table.positive
        positive = np.array(given if isinstance(given, list) else [given])
        for label in positive if which == "training" else ():
            if label not in found:
                shown = ", ".join(f"{label:g}" for label in found[:MOST_SHOWN])
                more = ", …" * (len(found) > MOST_SHOWN)
                raise UserError(
                    f"{where}, positive = {label}: no training row has this label; there are {shown}{more}"
                )
        return positive

    def _positive(self) -> str:
        return "" if self.table.positive is None else f" (positive = {self.table.positive})"


class Logistic(Linear):
    """λ/2 ‖w‖² + Σ log(1 + exp(−y w·x)), y = ±1."""

    keys, loss = LogisticTable, LogisticLoss()


class SquaredHinge(Linear):
    """λ/2 ‖w‖² + Σ max(0, 1 − y w·x)², y = ±1."""

    keys, loss = SquaredHingeTable, SquaredHingeLoss()


class LeastSquares(Linear):
    """λ/2 ‖w‖² + Σ ½(w·x − y)²."""

    keys, loss = LeastSquaresTable, SquaredLoss()
    classifies = False
