"""The workers of a linear problem: margins, sums over rows, and what every other method asks of a problem."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hpcopt.math.average_precision import average_precision
from hpcopt.math.fingerprint import digest, fingerprint
from hpcopt.math.flat import Layout, aligned
from hpcopt.problems.base import Evaluation, row
from hpcopt.problems.batches import Batches
from hpcopt.problems.linear_rows import LinearRows, check_room
from hpcopt.problems.one_by_one import OneByOne

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from hpcopt.math.matrix import Matrix
    from hpcopt.problems.base import Draw, Ready, Share
    from hpcopt.problems.data import Partition
    from hpcopt.problems.linear import Linear
    from hpcopt.problems.linear_rows import Labelled


class LinearProblem(OneByOne):
    """The workers here, with their rows one after the other, r in all; ``span(i)`` are those of worker i.

    symbol    shape    meaning
    X         (r, d)   the rows here, dense or sparse, the last column being 1 where there is a bias
    y         (r,)     their targets
    z         (r,)     margins X w
    X_p, y_p           those of one worker
    λ                  regularisation × rows of all workers

    Methods for linear models use `margins` and what follows it; all others see f/n, as `Problem` says.

    Attributes:
        loss: l, with its derivatives.
        regularisation: λ.
        y: targets of the rows here, (r,).
        products: products X w and X_pᵀ c of all rows here so far (of some of the rows: that fraction).
    """

    def __init__(self, share: Share, recipe: Linear, parts: Partition) -> None:
        """Reads the workers' rows.

        Raises:
            UserError: a number is not finite, or there are too many features.
        """
        table, features = recipe.table, math.prod(recipe.data.train.shape)
        check_room(recipe.data.name, features, share)
        names = [("weight", (features,)), ("bias", (1,))] if table.bias else [("weight", (features,))]
        super().__init__(share, Layout.of(names), [len(rows) for rows in parts.train], "rows")
        self.loss, self.regularisation = recipe.loss, table.regularisation * self.total_rows
        self.scale = float(self.total_rows)
        self.optimal_value = table.optimum
        self._recipe, self._parts = recipe, parts
        self._train = self._read(recipe.train, parts.train)
        self.y = self._train.y
        # every worker's even slice of all test rows, for a model of all: so what is wrong is found now
        self._even_test = self._evenly(recipe.test)
        self._batches = Batches(share, self.rows.tolist(), table.batch_size)
        self.products = 0.0
        tests = [len(rows) for rows in parts.test or []]
        self._uneven_tests = bool(tests) and max(tests) > min(tests) + 1
        if tests:
            self.test_rows = torch.tensor(tests)[share.workers.start : share.workers.stop]

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """See `Problem`."""
        recipe, parts = self._recipe, self._parts
        return (
            super().made_of
            | recipe.table.made_of()
            | {
                "the data set": recipe.data.told(),
                "which rows each worker has": digest([fingerprint(rows) for rows in parts.train]),
                "which test rows each worker has": digest([fingerprint(rows) for rows in parts.test or []]),
                "the targets": fingerprint(recipe.train.targets),
            }
        )

    # --- for methods that know that the model is linear ------------------------------------------

    def span(self, i: int) -> slice:
        """Which of the rows here are those of worker i (from 0 here)."""
        return self._train.span(i)

    def rows_of_worker(self, i: int) -> Matrix:
        """X_p of worker i (from 0 here); a sparse one's memory is that of X."""
        return self._train.blocks[i]

    def margins(self, w: Tensor) -> Tensor:
        """z = X w, (r,), of w (d,); or X W, (r, m), of W (d, m). One product."""
        self.products += 1
        if self._train.whole is not None:
            return self._train.whole.times(w)
        z = w.new_empty(len(self.y), *w.shape[1:])
        for i, block in enumerate(self._train.blocks):
            z[self.span(i)] = block.times(w)
        return z

    def transposed(self, c: Tensor, out: Tensor) -> None:
        """out += Xᵀ c, (d,), of c (r,): all workers here together. One product."""
        self.products += 1
        self.samples += len(c)
        if self._train.whole is not None:
            out += self._train.whole.transposed_times(c)
            return
        for i, block in enumerate(self._train.blocks):
            out += block.transposed_times(c[self.span(i)])

    def transposed_each(self, c: Tensor, out: Tensor) -> None:
        """out_i += X_pᵀ c_p of every worker here, out (n, d). One product."""
        self.products += 1
        self.samples += len(c)
        for i, block in enumerate(self._train.blocks):
            out[i] += block.transposed_times(c[self.span(i)])

    def of_rows(self, of: Callable[[Tensor, Tensor], Tensor], z: Tensor) -> Tensor:
        """l, l' or l'' of the rows' margins z and targets, (r,), worker by worker.

        torch computes exponentials of the last few numbers of a vector in another way than those before them:
        of all rows at once, a worker's numbers would depend on who else lives here.
        """
        values = torch.empty_like(z)
        for i in range(self.share.n):
            rows = self.span(i)
            values[rows] = of(z[rows], self.y[rows])
        return values

    def sums(self, values: Tensor) -> Tensor:
        """Of numbers of each row here, (r, …), the sum of each worker's, (n, …) float64."""
        each = [aligned(values[self.span(i)]).sum(0, dtype=torch.float64) for i in range(self.share.n)]
        return torch.stack(each) if each else values.new_zeros(0, *values.shape[1:], dtype=torch.float64)

    # --- what every problem has ------------------------------------------------------------------

    def initial(self) -> Tensor:
        """w = 0, (d,)."""
        return self._zeros(self.dim)

    def batch_rows(self, i: int, draw: Draw | None) -> int:
        """See `Problem`."""
        return self._batches.count(i, draw)

    def total_gradient(
        self,
        X: Tensor,
        draw: Draw | None = None,
        *,
        out: Tensor | None = None,
        ready: Ready | None = None,
    ) -> Tensor:
        """See `Problem`; of one model and all rows in two products."""
        if X.ndim > 1 or any(self.batch_rows(i, draw) < int(rows) for i, rows in enumerate(self.rows)):
            return super().total_gradient(X, draw, out=out, ready=ready)
        out = self._zeros(self.dim) if out is None else out.zero_()
        self.transposed(self.of_rows(self.loss.slope, self.margins(X)), out)
        return out.add_(X, alpha=self.regularisation * float(self.weights.sum())).div_(self.scale)

    @torch.no_grad()
    def evaluate(self, X: Tensor, buffers: Tensor | None = None) -> Evaluation:
        """Training loss, and what test rows say.

        ``loss``: f, a sum over rows, with the regulariser. ``test_loss``: the mean over test rows, without.
        ``generalisation_gap``: that minus the same mean over training rows. ``accuracy``: of the sign, for
        labels ±1. A model for all is tested on all test rows, models of the workers' own on their own.
        """
        common, result, recipe, wanted = X.ndim == 1, Evaluation(), self._recipe, self.measures
        sums = torch.zeros(self.share.n, dtype=torch.float64)
        if wanted.train:
            sums = self._training_sums(X)
            penalties = self.regularisation / 2 * _squares(X).cpu().double()
            losses = sums * (self.total_rows / self.rows.double().clamp(min=1)) + penalties
            result.add("loss", losses, self.weights)
        if recipe.test is None or self._even_test is None or not wanted.test:
            return result
        tests = self._even_test if common else self._own_test
        counts = torch.tensor([len(tests.of(i)) for i in range(self.share.n)], dtype=torch.float64)
        weights = counts if common else (counts > 0).double()
        test_losses = self._sums(tests, X) / counts.clamp(min=1)
        rows = None if common or not self._uneven_tests else counts
        result.add("test_loss", test_losses, weights, rows)
        if not wanted.train:
            pass
        elif (
            common
        ):  # Σ gap_p weight_p / Σ weight_p is the difference of the means over all rows of each kind
            gaps = test_losses * counts / len(recipe.test.targets) - sums / self.total_rows
            result.add("generalisation_gap", gaps * self.share.total, torch.ones(self.share.n))
        else:
            result.add("generalisation_gap", test_losses - sums / self.rows.clamp(min=1), weights)
        if recipe.signed:
            right = torch.zeros(self.share.n, dtype=torch.float64)
            for i, z in enumerate(self._decisions(tests, X)):
                right[i] = ((z > 0) == (tests.of(i) > 0)).sum()
            result.add("accuracy", right / counts.clamp(min=1), weights, rows)
        return result

    @torch.no_grad()
    def scores(self, X: Tensor, buffers: Tensor | None = None) -> dict[str, Tensor]:
        """``auprc``: decision value and label of the test rows here, (r, 2)."""
        if self._even_test is None or not self._recipe.signed:
            return {}
        tests = self._even_test if X.ndim == 1 else self._own_test
        decisions = enumerate(self._decisions(tests, X))
        pairs = [torch.stack([z, tests.of(i)], 1).cpu().double() for i, z in decisions]
        return {"auprc": torch.cat([*pairs, torch.zeros(0, 2, dtype=torch.float64)])}

    def score(self, name: str, rows: Tensor) -> float:
        """The area under the curve of precision over recall of all test rows."""
        return average_precision(rows[:, 0].numpy(), rows[:, 1].numpy() > 0)

    # --- within ----------------------------------------------------------------------------------

    def _batch(self, i: int, draw: Draw | None) -> tuple[Matrix, Tensor, float]:
        """Rows of worker i in a draw, their targets, and n over their number."""
        X, y = self._train.blocks[i], self.y[self.span(i)]
        chosen = self._batches.select(i, draw)
        if chosen is not None:
            X, y = X.pick(chosen), y[chosen]
        return X, y, self.total_rows / max(1, len(y))

    def _loss(self, i: int, x: Tensor, draw: Draw | None) -> Tensor:
        X, y, factor = self._batch(i, draw)
        return factor * self.loss.value(X.times(x), y).sum() + self.regularisation / 2 * torch.dot(x, x)

    def _add_gradient(
        self, i: int, x: Tensor, draw: Draw | None, scale: float, out: Tensor, ready: Ready | None = None
    ) -> None:
        X, y, factor = self._batch(i, draw)
        c = self.loss.slope(X.times(x), y)
        out.add_(X.transposed_times(c), alpha=scale * factor / self.scale)
        out.add_(x, alpha=scale * self.regularisation / self.scale)

    def _hvp(self, i: int, x: Tensor, v: Tensor, draw: Draw | None) -> Tensor:
        X, y, factor = self._batch(i, draw)
        c = self.loss.curvature(X.times(x), y) * X.times(v)
        product = X.transposed_times(c).mul_(factor / self.scale)
        return product.add_(v, alpha=self.regularisation / self.scale)

    def _training_sums(self, X: Tensor) -> Tensor:
        """Σ l of each worker's training rows, (n,) float64, from as many as `measures` asks for."""
        draw = self.measures.draw
        if draw is None:
            return self._sums(self._train, X)
        sums = torch.zeros(self.share.n, dtype=torch.float64)
        for i, count in enumerate(self.rows.tolist()):
            block, y, _ = self._batch(i, draw)
            total = self.loss.value(block.times(row(X, i)), y).sum(dtype=torch.float64)
            sums[i] = total * (count / max(1, len(y)))
        return sums

    def _sums(self, rows: LinearRows, X: Tensor) -> Tensor:
        """Σ l of each worker's rows, (n,) float64."""
        sums = torch.zeros(self.share.n, dtype=torch.float64)
        for i, z in enumerate(self._decisions(rows, X)):
            sums[i] = self.loss.value(z, rows.of(i)).sum(dtype=torch.float64)
        return sums

    def _decisions(self, rows: LinearRows, X: Tensor) -> list[Tensor]:
        return [block.times(row(X, i)) for i, block in enumerate(rows.blocks)]

    def _evenly(self, source: Labelled | None) -> LinearRows | None:
        if source is None:
            return None
        return self._read(source, np.array_split(np.arange(len(source.targets)), self.share.total))

    @cached_property
    def _own_test(self) -> LinearRows:
        """Test rows that are distributed like each worker's training rows, for models of their own."""
        assert self._recipe.test is not None
        assert self._parts.test is not None
        return self._read(self._recipe.test, self._parts.test)

    def _read(self, source: Labelled, numbers: Sequence[NDArray[np.int64]]) -> LinearRows:
        mine = [numbers[worker] for worker in self.share.workers]
        return LinearRows(self._recipe.data.name, source, mine, self._recipe.table.bias, self.share)


def _squares(X: Tensor) -> Tensor:
    """‖x‖² of one model or of each."""
    return X.square().sum(-1)
