"""The HDF5 data file of sparse rows, schema "hpcopt-data" version 2, and sparse rows in memory.

    /                attributes: schema = "hpcopt-data", schema_version = 2
                     features      int64, the length of a row
                     classes, source, created   as in version 1
    /train/data      (nnz,) float64, or float32 where that holds every number exactly
    /train/indices   (nnz,) int32, or int64 where features ≥ 2³¹: ascending in every row, from 0
    /train/indptr    (rows + 1,) int64: row i has the numbers indptr[i]…indptr[i + 1] − 1
    /train/y         (rows,) int64 where all labels, of test rows too, are whole, else float64
    /test/…          the same; the group is absent where there are no test rows

The import puts the rows in random order, so that every contiguous block of them is a fair sample. Chunks are
256 KiB, uncompressed, with HDF5's Fletcher-32 checksum. Rows are read as in version 1.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcopt.errors import UserError
from hpcopt.ground import inside
from hpcopt.math.fingerprint import fingerprint
from hpcopt.problems.data.data_file import open_readonly
from hpcopt.problems.data.dataset import Dataset, check_rows
from hpcopt.problems.data.shuffle import spans, starts_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import h5py
    from numpy.typing import NDArray

RUN_BYTES = 8 << 20  # the longest single read with a gap in it
GAP_BYTES = 64 << 10  # closer rows are fetched in one read, gap included
SHOWN_LABELS = 100  # more different ones are told by their range


class SparseSplit:
    """Sparse rows in a file, opened anew for every read; only the labels are held in memory."""

    sparse = True

    def __init__(self, path: Path, group: str, features: int, labels: NDArray[Any]) -> None:
        """``labels`` is (rows,)."""
        self._path = path
        self._group = group
        self.shape = (features,)
        self.labels = labels

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.labels)

    def read(self, rows: NDArray[np.integer[Any]]) -> Any:
        """See `Split.read`: a csr_matrix; of a contiguous block one piece of each array is read."""
        rows = check_rows(rows, len(self))
        # np.unique would sort what is ascending already, as partitions are
        ascending = len(rows) == 0 or bool((np.diff(rows) > 0).all())
        wanted, back = (rows, None) if ascending else np.unique(rows, return_inverse=True)
        with open_readonly(self._path) as file:
            data, indices, indptr = _rows(file[self._group], wanted)
            # the products of scipy would not look where they read
            if len(indices) and not (indices.min() >= 0 and indices.max() < self.shape[0]):
                raise ValueError(f"indices that are not in 0…{self.shape[0] - 1}")
            matrix = csr(data, indices, indptr, self.shape[0])
        return matrix if back is None else matrix[back]

    def told(self) -> list[str]:
        """See `Split`; how many numbers each row has tells it from others with the same labels."""
        with open_readonly(self._path) as file:
            return [
                f"file {self.shape}",
                fingerprint(self.labels),
                fingerprint(file[self._group]["indptr"][()]),
            ]


def csr(data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[np.int64], features: int) -> Any:
    """A csr_matrix (rows, features) in canonical form of arrays that have it."""
    from scipy.sparse import csr_matrix

    matrix = csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, features))
    matrix.has_canonical_format = True  # or the first product would look for itself
    return matrix


def _rows(group: h5py.Group, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """(data, indices, indptr) of ascending rows."""
    if len(rows) == 0:
        return np.empty(0, group["data"].dtype), np.empty(0, group["indices"].dtype), np.zeros(1, np.int64)
    first = int(rows[0])
    bounds = group["indptr"][first : int(rows[-1]) + 2]
    begins, ends = bounds[rows - first], bounds[rows - first + 1]
    if (ends < begins).any() or (begins < 0).any() or (ends > len(group["data"])).any():
        raise ValueError("indptr is not ascending")
    starts = starts_of(ends - begins)
    parts = [np.empty(starts[-1], group[name].dtype) for name in ("data", "indices")]
    for run in _runs(begins, ends, parts[0].itemsize):
        low, high = int(begins[run][0]), int(ends[run][-1])
        here = slice(int(starts[run.start]), int(starts[run.stop]))
        for name, out in zip(("data", "indices"), parts, strict=True):
            if high - low == here.stop - here.start:
                _into(group[name], low, out[here])
            else:
                out[here] = group[name][low:high][spans(begins[run] - low, (ends - begins)[run])]
    return parts[0], parts[1], starts


def _into(dataset: h5py.Dataset, start: int, out: NDArray[Any]) -> None:
    if len(out):
        dataset.read_direct(out, np.s_[start : start + len(out)])


def _runs(begins: NDArray[np.int64], ends: NDArray[np.int64], itemsize: int) -> Iterator[slice]:
    """Positions in the rows that one read each brings in."""
    gap = (begins[1:] - ends[:-1]) * itemsize
    block = begins * itemsize // RUN_BYTES
    edges = np.flatnonzero((gap > GAP_BYTES) | ((gap > 0) & (np.diff(block) > 0))) + 1
    for start, stop in pairwise([0, *edges.tolist(), len(begins)]):
        yield slice(start, stop)


def read_sparse(path: Path, file: h5py.File) -> Dataset:
    """The data set in an open file of version 2. Raises `UserError` where it holds something else."""
    classes = int(file.attrs["classes"]) if "classes" in file.attrs else None
    train = _split(path, file, "train", classes)
    test = _split(path, file, "test", classes) if "test" in file else None
    return Dataset(str(path), train, test, classes, 0.0, 1.0)


def _split(path: Path, file: h5py.File, group: str, classes: int | None) -> SparseSplit:
    data, indices, indptr, y = (
        inside.dataset(file, f"{group}/{name}") for name in ("data", "indices", "indptr", "y")
    )
    labels, features = y[()], int(file.attrs["features"])
    alike = data.shape == indices.shape == (int(indptr[-1]),) and indptr.shape == (len(labels) + 1,)
    if not alike or len(labels) == 0 or labels.ndim != 1 or features < 1:
        raise UserError(
            f"{path}: /{group} holds data {data.shape}, indices {indices.shape}, indptr {indptr.shape}, "
            f"y {labels.shape}, which do not fit together"
        )
    if classes is not None and (labels.dtype.kind != "i" or labels.min() < 0 or labels.max() >= classes):
        raise UserError(f"{path}: /{group}/y does not hold the classes 0…{classes - 1}")
    return SparseSplit(path, group, features, labels)


def describe_sparse(file: h5py.File, dataset: Dataset) -> dict[str, Any]:
    """What `hpcopt data info` tells of the sparse rows in an open file.

    Returns:
        features, classes (None if there are none) and, under "train" and "test" (None if absent): rows, nnz,
        density (nnz / (rows · features)), dtype, label_dtype, labels ([smallest, largest]) and counts
        (label -> rows; None for labels that are not whole, or more than 100 different ones).
    """
    tests = None if dataset.test is None else _describe(file["test"], dataset.test)
    return {
        "features": dataset.train.shape[0],
        "classes": dataset.classes,
        "train": _describe(file["train"], dataset.train),
        "test": tests,
    }


def _describe(group: h5py.Group, split: Any) -> dict[str, Any]:
    nnz, labels = int(group["data"].shape[0]), split.labels
    values, sizes = np.unique(labels, return_counts=True)
    few = labels.dtype.kind == "i" and len(values) <= SHOWN_LABELS
    return {
        "rows": len(labels),
        "nnz": nnz,
        "density": nnz / (len(labels) * split.shape[0]),
        "dtype": str(group["data"].dtype),
        "label_dtype": str(labels.dtype),
        "labels": [values[0].item(), values[-1].item()],
        "counts": dict(zip(values.tolist(), sizes.tolist(), strict=True)) if few else None,
    }
