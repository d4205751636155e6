"""Rows of a linear problem: matrices with a column of ones for the bias, and targets."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hpcopt.errors import UserError
from hpcopt.math.matrix import matrix_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from hpcopt.math.matrix import Matrix
    from hpcopt.problems.base import Share
    from hpcopt.problems.data import Split

PIXEL = 255
"""what bytes are divided by"""
VECTORS = 4
"""as long as the model, which every run needs at least: it, a gradient, a sum and a direction"""


@dataclass(frozen=True)
class Labelled:
    """All training or all test rows, with their targets (rows,) as numbers."""

    split: Split
    targets: NDArray[np.float64]


class LinearRows:
    """The training or the test rows of the workers here.

    Dense rows of a worker are a matrix of their own: what BLAS makes of rows depends on where in memory they
    begin, which must not depend on who else lives here. Sparse ones are views of one matrix.

    Args:
        name: of the data set, for messages.
        source: where to read.
        numbers: which rows each worker here has.
        bias: whether there is a column of ones.
        share: the workers here.

    Raises:
        UserError: a number is not finite.

    Attributes:
        starts: where each worker's rows begin, and where the last one's end, (n + 1).
        blocks: X_p of each worker.
        whole: X, if sparse.
        y: targets, (r,).
    """

    def __init__(
        self,
        name: str,
        source: Labelled,
        numbers: Sequence[NDArray[np.int64]],
        bias: bool,
        share: Share,
    ) -> None:
        together = np.concatenate([*numbers, np.empty(0, np.int64)])
        self._name, self._bias, self._share = name, bias, share
        self.starts = np.cumsum([0, *(len(mine) for mine in numbers)]).tolist()
        self.y = torch.tensor(source.targets[together], dtype=share.dtype, device=share.device)
        self.whole: Matrix | None = None
        if source.split.sparse:
            self.whole = self._sparse(source.split.read(together))
            self.blocks = [self.whole.rows(start, stop) for start, stop in pairwise(self.starts)]
        else:
            self.blocks = [self._dense(source.split.read(mine)) for mine in numbers]

    def span(self, i: int) -> slice:
        """Which rows are those of worker i (from 0 here)."""
        return slice(self.starts[i], self.starts[i + 1])

    def of(self, i: int) -> Tensor:
        """The targets of worker i (from 0 here)."""
        return self.y[self.span(i)]

    def _sparse(self, csr: Any) -> Matrix:
        self._check(csr.data)
        return matrix_of(_with_ones(csr) if self._bias else csr, self._share.dtype, self._share.device)

    def _dense(self, rows: NDArray[Any]) -> Matrix:
        self._check(rows)
        rows = rows.astype(rows.dtype.newbyteorder("="), copy=False)
        features = math.prod(rows.shape[1:])
        X = torch.ones(len(rows), features + self._bias, dtype=self._share.dtype)
        X[:, :features] = torch.from_numpy(rows.reshape(len(rows), features))
        if rows.dtype == np.uint8:
            X[:, :features] /= PIXEL
        return matrix_of(X, self._share.dtype, self._share.device)

    def _check(self, numbers: NDArray[Any]) -> None:
        if numbers.dtype.kind != "f" or numbers.size == 0:
            return
        limit = torch.finfo(self._share.dtype).max
        for extreme in (float(numbers.max()), float(numbers.min())):  # nan if one is
            if not abs(extreme) <= limit**0.5:
                of = str(self._share.dtype).removeprefix("torch.")
                what = "whose square" if abs(extreme) <= limit else "which"
                raise UserError(
                    f'[problem] dataset = "{self._name}": a feature is {extreme:g}, {what} is no finite {of}'
                )


def check_room(name: str, features: int, share: Share) -> None:
    """Raises `UserError` where a few vectors are larger than this machine: no run could be made of them.

    Args:
        name: of the data set.
        features: of a row.
        share: the workers here.
    """
    needed = VECTORS * features * share.dtype.itemsize
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UserError(
            f'[problem] dataset = "{name}": a row has {features:,} features, and {VECTORS} vectors of that '
            f"length take {needed / 1e9:,.0f} GB, but this machine has {there / 1e9:,.0f} GB. If an index in "
            "its source is wrong: `hpcopt data import --features N` names the line"
        )


def _with_ones(csr: Any) -> Any:
    """A sparse matrix with a column of ones behind the others."""
    from scipy.sparse import csr_matrix

    rows, columns = csr.shape
    ends = csr.indptr[1:]
    data, indices = np.insert(csr.data, ends, 1), np.insert(csr.indices, ends, columns)
    return csr_matrix((data, indices, csr.indptr + np.arange(rows + 1)), shape=(rows, columns + 1))
