"""A data set: training rows, perhaps test rows, and what standardising them needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hpcopt.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Split(Protocol):
    """The training or the test rows. Every rank has one of its own and reads its own rows.

    Attributes:
        sparse: whether rows are read as a SciPy CSR matrix.
    """

    sparse: bool

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

        Raises:
            IndexError: a row number is negative or past the end.
            UserError: the file cannot be read, or is damaged.
        """


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


class ArraySplit:
    """Rows in memory."""

    sparse = False

    def __init__(self, x: NDArray[Any], labels: NDArray[Any]) -> None:
        """Takes x (rows, *shape) and labels (rows, …) as they are, without a copy."""
        self._x = x
        self.labels = labels

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return self._x.shape[1:]

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._x)

    def read(self, rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """See `Split.read`; always a copy."""
        rows = check_rows(rows, len(self))
        return self._x[rows]


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


def array_dataset(train: tuple[Any, Any], test: tuple[Any, Any] | None = None) -> Dataset:
    """A data set from arrays in memory, taken as they are: mean 0 and deviation 1, so nothing is rescaled.

    Args:
        train: (x, y) with x (rows, *shape) and y (rows, …): numpy arrays, torch tensors or nested lists.
        test: the same for the test rows.

    Raises:
        UserError: x and y, or train and test, do not fit together.
    """
    train_x, train_y = _pair("train", train)
    test_x, test_y = (None, None) if test is None else _pair("test", test)
    if test_x is not None and test_x.shape[1:] != train_x.shape[1:]:
        raise UserError(f"one row of test has shape {test_x.shape[1:]}, one of train {train_x.shape[1:]}")
    return assemble("arrays", train_x, train_y, test_x, test_y, moments=(0.0, 1.0))


def assemble(
    name: str,
    train_x: NDArray[Any],
    train_y: NDArray[Any],
    test_x: NDArray[Any] | None,
    test_y: NDArray[Any] | None,
    moments: tuple[float, float],
) -> Dataset:
    """A data set in memory; ``moments`` = (mean, std)."""
    labels = [train_y] if test_y is None else [train_y, test_y]
    classes = count_classes(labels)
    if classes is not None:
        labels = [y.astype(np.int64, copy=False) for y in labels]
    train = ArraySplit(train_x, labels[0])
    test = None if test_x is None else ArraySplit(test_x, labels[1])
    return Dataset(name, train, test, classes, *moments)


def count_classes(labels: Sequence[NDArray[Any]]) -> int | None:
    """1 + the largest label, or None if the targets (rows, …) are not class numbers 0, 1, …."""
    if any(y.ndim != 1 or y.dtype.kind not in "iub" or len(y) == 0 or y.min() < 0 for y in labels):
        return None
    return 1 + max(int(y.max()) for y in labels)


def _pair(which: str, pair: tuple[Any, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        x, y = (_as_array(part) for part in pair)
    except (TypeError, ValueError) as error:
        raise UserError(f"{which} must be a pair (x, y) of arrays: {error}") from error
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or len(x) == 0:
        raise UserError(
            f"{which}: x of shape {x.shape} and y of shape {y.shape} must have equally many rows, at least 1"
        )
    return x, y


def _as_array(part: Any) -> NDArray[Any]:
    """A numpy array of an array, a list, or a tensor on any device (known by its methods, not its type)."""
    if hasattr(part, "detach") and hasattr(part, "cpu"):
        part = part.detach().cpu()
    array = np.asarray(part)
    if array.dtype.kind not in "buif":
        raise TypeError(f"numbers are needed, not {array.dtype}")
    return array


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
