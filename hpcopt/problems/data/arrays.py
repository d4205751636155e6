"""Data sets of arrays in memory, dense and sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hpcopt.errors import UserError
from hpcopt.math.fingerprint import fingerprint
from hpcopt.problems.data.dataset import Dataset, check_rows, count_classes

if TYPE_CHECKING:
    from numpy.typing import NDArray


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

    def told(self) -> list[str]:
        """See `Split`."""
        return [fingerprint(self._x), fingerprint(self.labels)]


class SparseArraySplit:
    """Sparse rows in memory."""

    sparse = True

    def __init__(self, x: Any, labels: NDArray[Any]) -> None:
        """Takes x (rows, features), any scipy.sparse matrix of numbers, without a copy where it can."""
        from scipy.sparse import csr_matrix

        matrix = csr_matrix(x) if x.dtype in (np.float32, np.float64) else csr_matrix(x, dtype=np.float64)
        if not matrix.has_canonical_format:
            matrix = matrix.copy()  # or the caller's own matrix would change
            matrix.sum_duplicates()
        self._x = matrix
        self.labels = labels

    @property
    def shape(self) -> tuple[int, ...]:
        """(features,)."""
        return (self._x.shape[1],)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.labels)

    def read(self, rows: NDArray[np.integer[Any]]) -> Any:
        """See `Split.read`; always a copy."""
        return self._x[check_rows(rows, len(self))]

    def told(self) -> list[str]:
        """See `Split`."""
        parts = self._x.data, self._x.indices.astype(np.int64), self.labels
        return [f"{self._x.shape}", *map(fingerprint, parts)]


def array_dataset(train: tuple[Any, Any], test: tuple[Any, Any] | None = None) -> Dataset:
    """A data set from arrays in memory, taken as they are: mean 0 and deviation 1, so nothing is rescaled.

    Args:
        train: (x, y) with x (rows, *shape) and y (rows, …): numpy arrays, torch tensors or nested lists; or x
            a scipy.sparse matrix.
        test: the same for the test rows.

    Raises:
        UserError: x and y, or train and test, do not fit together.
    """
    train_x, train_y = _pair("train", train)
    test_x, test_y = (None, None) if test is None else _pair("test", test)
    if test_x is not None and _is_sparse(test_x) != _is_sparse(train_x):
        raise UserError("train and test must both be sparse, or neither")
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
    train = _split(train_x, labels[0])
    test = None if test_x is None else _split(test_x, labels[1])
    return Dataset(name, train, test, classes, *moments)


def _split(x: Any, labels: NDArray[Any]) -> ArraySplit | SparseArraySplit:
    return SparseArraySplit(x, labels) if _is_sparse(x) else ArraySplit(x, labels)


def _is_sparse(x: Any) -> bool:
    """Known by its methods: most who come here have not imported scipy."""
    return hasattr(x, "tocsr")


def _pair(which: str, pair: tuple[Any, Any]) -> tuple[Any, NDArray[Any]]:
    try:
        x, y = pair
        x, y = x.tocsr() if _is_sparse(x) else _as_array(x), _as_array(y)
    except (TypeError, ValueError) as error:
        raise UserError(f"{which} must be a pair (x, y) of arrays: {error}") from error
    if _is_sparse(x) and (x.dtype.kind not in "buif" or y.ndim > 1):
        raise UserError(
            f"{which}: sparse x must hold numbers, not {x.dtype}, and y one number a row, not {y.shape[1:]}"
        )
    if x.ndim == 0 or y.ndim == 0 or x.shape[0] != y.shape[0] or x.shape[0] == 0:
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
