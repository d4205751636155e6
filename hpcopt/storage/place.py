"""Rows of a dataset as plain bytes at an offset of the file; HDF5 is not asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpcopt.ground import files
from hpcopt.storage.file_like import Opened
from hpcopt.storage.schema import missing

BLOCK_BYTES = 4 << 20
"""what is moved at once"""


class Rows(Protocol):
    """The first rows of a column: an array, or something that reads them."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: slice, /) -> NDArray[np.generic]: ...


@dataclass(frozen=True)
class Place:
    """Where a contiguous dataset is.

    Attributes:
        offset: of its first byte in the file [B].
        shape, dtype: of the whole dataset, at least one-dimensional.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """The size of a row [B]."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def step(self, stride: int = 1) -> int:
        """How many rows, ``stride`` apart, to move at once."""
        return max(1, BLOCK_BYTES // max(1, self.row_bytes * stride))

    def get(self, file: Opened, start: int, stop: int) -> NDArray[np.generic]:
        """Rows [start, stop); raises OSError."""
        rows = np.zeros((stop - start, *self.shape[1:]), dtype=self.dtype)
        file.read_at(rows.reshape(-1).view(np.uint8), self.offset + start * self.row_bytes)
        return rows

    def put(self, descriptor: int, start: int, rows: NDArray[np.generic]) -> None:
        """Writes rows from ``start`` on; raises OSError."""
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        files.write_at(descriptor, data, self.offset + start * self.row_bytes)

    def fill(self, descriptor: int, known: Rows) -> None:
        """Writes all rows: first those that are known, the others "missing"; raises OSError."""
        step = self.step()
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            rows = np.full((stop - start, *self.shape[1:]), missing(self.dtype), dtype=self.dtype)
            if start < len(known):
                some = known[start : min(stop, len(known))]
                rows[: len(some)] = some
            self.put(descriptor, start, rows)
