"""Torch's map-style data sets as a split, of which every rank reads its own rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from hpcopt.errors import UserError
from hpcopt.math.fingerprint import fingerprint
from hpcopt.problems.data.dataset import Dataset, check_rows, count_classes

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOOKED_AT = 16
"""rows by which one data set is told from others"""


class TorchSplit:
    """Rows (x, y) of a data set with a length; x and y are read when they are asked for, row by row.

    Attributes:
        labels: y of all rows, (rows, …): the data set's ``targets`` where it has them and does not transform
            them, or found by reading all rows once.
        shape: of one x.
    """

    sparse = False

    def __init__(self, which: str, rows: Any) -> None:
        try:
            count = len(rows)
            first, again = self._pair(rows, 0), self._pair(rows, 0)
            self.labels = self._targets(rows, count)
        except (TypeError, ValueError, IndexError, RuntimeError) as error:
            raise UserError(
                f"{which}: a torch Dataset needs a length of at least 1 and rows (x, y) of numbers: {error}"
            ) from error
        if not np.array_equal(first[0], again[0], equal_nan=True):
            raise UserError(
                f"{which}: row 0 is another one when it is read again; random changes of training rows are "
                "for augment, which is seeded by worker and mini-batch"
            )
        self.shape, self._rows = first[0].shape, rows

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.labels)

    def read(self, rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """See `hpcopt.problems.data.dataset.Split.read`."""
        found = [self._pair(self._rows, int(row))[0] for row in check_rows(rows, len(self))]
        return np.stack(found) if found else np.empty((0, *self.shape), np.float32)

    def told(self) -> list[str]:
        """See `hpcopt.problems.data.dataset.Split`; of x by some rows."""
        some = np.unique(np.linspace(0, len(self) - 1, LOOKED_AT).astype(np.int64))
        return [f"{self.shape}", fingerprint(self.read(some)), fingerprint(self.labels)]

    def _targets(self, rows: Any, count: int) -> NDArray[Any]:
        known = getattr(rows, "targets", None)
        if known is not None and len(known) == count and getattr(rows, "target_transform", None) is None:
            return np.asarray(known)
        if isinstance(rows, torch.utils.data.TensorDataset):
            return np.asarray(rows.tensors[1].cpu())
        return np.stack([self._pair(rows, row)[1] for row in range(count)])

    @staticmethod
    def _pair(rows: Any, row: int) -> tuple[NDArray[Any], NDArray[Any]]:
        x, y = rows[row]
        pair = np.asarray(x), np.asarray(y)
        if any(part.dtype.kind not in "buif" for part in pair):
            raise TypeError(f"row {row} is a {type(x).__name__} and a {type(y).__name__}")
        return pair


def torch_dataset(train: TorchDataset[Any], test: TorchDataset[Any] | None) -> Dataset:
    """A data set of torch's, taken as it is.

    Raises:
        UserError: it has no length or no rows (x, y), it is random, or train and test do not fit together.
    """
    splits = [TorchSplit("train", train), *([] if test is None else [TorchSplit("test", test)])]
    if len({split.shape for split in splits}) > 1:
        raise UserError(f"one row of test has shape {splits[1].shape}, one of train {splits[0].shape}")
    classes = count_classes([split.labels for split in splits])
    return Dataset("torch", splits[0], splits[1] if len(splits) > 1 else None, classes, 0.0, 1.0)
