"""A data set: training rows, perhaps test rows, and what standardising them needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hpcopt.math.fingerprint import digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Split(Protocol):
    """The training or the test rows. Every rank has one of its own and reads its own rows."""

    @property
    def sparse(self) -> bool:
        """Whether `read` gives a scipy.sparse matrix; then one row has shape (features,)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row; images of the built-in and imported data sets are (C, H, W)."""

    @property
    def labels(self) -> NDArray[Any]:
        """The targets of all rows, (rows,) int64 for classes, else (rows, …) as stored."""

    def __len__(self) -> int:
        """The number of rows."""

    def read(self, rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Only these rows, in the order asked, (len(rows), *shape), in the dtype they are stored in.

        Sparse rows come as a scipy.sparse.csr_matrix in canonical form.

        Raises:
            IndexError: a row number is negative or past the end.
            UserError: the file cannot be read, or is damaged.
        """

    def told(self) -> list[str]:
        """What tells it from other rows, by `hpcopt.math.fingerprint`; of a file, what it says itself."""


@dataclass(frozen=True)
class Dataset:
    """What a name or a path stands for.

    Attributes:
        name: as the user wrote it.
        train: the training rows.
        test: the test rows, None if there are none.
        classes: 1 + the largest label; None if the targets are not class numbers 0, 1, ….
        mean: of all numbers in the training rows.
        std: their standard deviation, 1 where that is 0.
    """

    name: str
    train: Split
    test: Split | None
    classes: int | None
    mean: float
    std: float

    @property
    def sparse(self) -> bool:
        """Whether rows are sparse; then mean = 0 and std = 1, for they are taken as they are."""
        return self.train.sparse

    def told(self) -> str:
        """What tells it from other data sets, whatever its name."""
        rows = [self.train.told(), None if self.test is None else self.test.told()]
        return digest([rows, self.classes, f"{self.mean:.6g} {self.std:.6g}"])


def check_rows(rows: NDArray[np.integer[Any]], available: int) -> NDArray[np.int64]:
    """Row numbers as (k,) int64. Raises `IndexError` where one is not in [0, available)."""
    rows = np.asarray(rows)
    if rows.size == 0:
        return np.empty(0, np.int64)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise IndexError(f"row numbers must be a list of integers, not {rows.dtype} of shape {rows.shape}")
    if rows.min() < 0 or rows.max() >= available:
        raise IndexError(f"rows {rows.min()}…{rows.max()} asked of a split with {available} rows")
    return rows.astype(np.int64)


def count_classes(labels: Sequence[NDArray[Any]]) -> int | None:
    """1 + the largest label, or None if the targets (rows, …) are not class numbers 0, 1, …."""
    if any(y.ndim != 1 or y.dtype.kind not in "iub" or len(y) == 0 or y.min() < 0 for y in labels):
        return None
    return 1 + max(int(y.max()) for y in labels)


class Moments:
    """Mean and standard deviation of numbers that come in blocks, in float64.

    Blocks are merged by Chan's formula: sums of squares would lose all digits where mean ≫ deviation.
    """

    def __init__(self) -> None:
        """Starts with no numbers."""
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0  # Σ (x − mean)²

    def update(self, block: NDArray[Any]) -> None:
        """Takes in one block of any shape and numeric dtype."""
        if block.size == 0:
            return
        mean = float(block.mean(dtype=np.float64))
        squares = float(block.var(dtype=np.float64)) * block.size
        total = self.count + block.size
        shift = mean - self.mean
        self._squares += squares + shift * shift * (self.count / total) * block.size
        self.mean += shift * (block.size / total)
        self.count = total

    @property
    def std(self) -> float:
        """The standard deviation; 1 where it is 0, because it is there to divide by."""
        return float(np.sqrt(self._squares / self.count)) or 1.0 if self.count else 1.0


def moments_of(x: NDArray[Any], rows: int = 4096) -> tuple[float, float]:
    """(mean, std) of x (rows, …), a few rows at a time so that no float64 copy of all of it is made."""
    moments = Moments()
    for start in range(0, len(x), rows):
        moments.update(x[start : start + rows])
    return moments.mean, moments.std
