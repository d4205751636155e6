"""The HDF5 data file of dense rows, schema "hpcopt-data" version 1; 2: `hpcopt.problems.data.sparse`.

    /            attributes: schema = "hpcopt-data", schema_version = 1
                 mean, std     float64, of all numbers in train/x
                 classes       int64, 1 + the largest label; absent where the targets are not class numbers
                 source        names of the files it was made from, created  ISO 8601, UTC
    /train/x     (rows, *shape), the source's dtype in native byte order; images are (rows, C, H, W)
    /train/y     (rows,) class numbers, or (rows, …) numbers
    /test/x, y   the same; the group is absent where there are no test rows

The import writes chunks of whole rows, about 64 KiB, uncompressed, with HDF5's Fletcher-32 checksum: one
row costs one small read, and a flipped bit is an error, not a wrong number. Files with contiguous or
compressed datasets are read as well.

Any number of ranks read at once: each opens the file by itself, read-only, with the plain POSIX driver, and
without file locks, because a file under its final name is never written again.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcopt.errors import UserError
from hpcopt.ground import inside
from hpcopt.math.fingerprint import fingerprint
from hpcopt.problems.data.data_file import SPARSE, open_readonly
from hpcopt.problems.data.dataset import Dataset, check_rows
from hpcopt.problems.data.sparse import describe_sparse, read_sparse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import h5py
    from numpy.typing import NDArray

RUN_BYTES = 8 << 20  # the longest single read of a contiguous dataset
GAP_BYTES = 64 << 10  # closer rows are fetched in one read, gap included


class Hdf5Split:
    """Rows in a file, opened anew for every read, so a forgotten split holds nothing open."""

    sparse = False

    def __init__(self, path: Path, group: str, shape: tuple[int, ...], labels: NDArray[Any]) -> None:
        """``shape`` is one row's; ``labels`` (rows, …) are held in memory."""
        self._path = path
        self._group = group
        self.shape = shape
        self.labels = labels

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.labels)

    def read(self, rows: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """See `Split.read`; reads front to back, holding the result and 8 MiB, or a chunk, at most."""
        rows = check_rows(rows, len(self))
        order = np.argsort(rows, kind="stable")
        with open_readonly(self._path) as file:
            x = file[self._group]["x"]
            out = np.empty((len(rows), *self.shape), x.dtype)
            for run in _runs(rows[order], x):
                wanted = rows[order[run]]
                first, last = int(wanted[0]), int(wanted[-1])
                out[order[run]] = x[first : last + 1][wanted - first]
        return out

    def told(self) -> list[str]:
        """See `Split`; the data set's mean and deviation are of all numbers of the training rows."""
        return [f"file {self.shape}", fingerprint(self.labels)]


def _runs(rows: NDArray[np.int64], x: h5py.Dataset) -> Iterator[slice]:
    """Positions in the sorted ``rows`` that one read each brings in."""
    if len(rows) == 0:
        return
    row_bytes = max(1, x.nbytes // x.shape[0])
    if x.chunks:
        block = rows // x.chunks[0]  # a chunk comes in whole anyhow, and should come in once
        breaks = np.diff(block) > 0
    else:
        block = rows // max(1, RUN_BYTES // row_bytes)
        breaks = (np.diff(block) > 0) | (np.diff(rows) > max(1, GAP_BYTES // row_bytes))
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(rows)]
    for start, stop in pairwise(edges):
        yield slice(start, stop)


def open_hdf5(path: Path) -> Dataset:
    """The data set in a file; reads the labels and leaves the rows where they are.

    Raises:
        UserError: the file is absent, cut short, damaged, or not of this schema.
    """
    with open_readonly(path) as file:
        attributes = file.attrs
        if attributes["schema_version"] == SPARSE:
            return read_sparse(path, file)
        classes = int(attributes["classes"]) if "classes" in attributes else None
        train = _split(path, file, "train", classes)
        test = _split(path, file, "test", classes) if "test" in file else None
        if test is not None and test.shape != train.shape:
            raise UserError(f"{path}: one row of test has shape {test.shape}, one of train {train.shape}")
        return Dataset(str(path), train, test, classes, float(attributes["mean"]), float(attributes["std"]))


def _split(path: Path, file: h5py.File, group: str, classes: int | None) -> Hdf5Split:
    x, y = inside.dataset(file, f"{group}/x"), inside.dataset(file, f"{group}/y")
    if x.ndim < 2 or y.ndim < 1 or x.shape[0] != y.shape[0] or x.shape[0] == 0:
        raise UserError(f"{path}: /{group} holds x of shape {x.shape} and y of shape {y.shape}")
    labels = y[()]
    if classes is not None:
        if labels.ndim != 1 or labels.dtype.kind not in "iub" or labels.min() < 0 or labels.max() >= classes:
            raise UserError(f"{path}: /{group}/y does not hold the classes 0…{classes - 1}")
        labels = labels.astype(np.int64)
    return Hdf5Split(path, group, tuple(x.shape[1:]), labels)


def describe(path: Path) -> dict[str, Any]:
    """What `hpcopt data info` tells of a file: plain numbers, strings, lists and dictionaries.

    Returns:
        path, bytes, schema_version, source, created; then of sparse rows what `describe_sparse` gives, else
        mean, std, classes (None if there are none) and, under "train" and "test" (None if absent): rows,
        shape (of one row), dtype, label_dtype and counts (class -> rows; None without classes).

    Raises:
        UserError: as `open_hdf5`.
    """
    dataset = open_hdf5(path)
    with open_readonly(path) as file:
        attributes = file.attrs
        return {
            "path": str(path),
            "bytes": path.stat().st_size,
            "schema_version": int(attributes["schema_version"]),
            "source": str(attributes.get("source", "")),
            "created": str(attributes.get("created", "")),
        } | (describe_sparse(file, dataset) if dataset.sparse else _describe_dense(file, dataset))


def _describe_dense(file: h5py.File, dataset: Dataset) -> dict[str, Any]:
    return {
        "mean": dataset.mean,
        "std": dataset.std,
        "classes": dataset.classes,
        "train": _describe_split(file["train"], dataset.classes),
        "test": _describe_split(file["test"], dataset.classes) if "test" in file else None,
    }


def _describe_split(group: h5py.Group, classes: int | None) -> dict[str, Any]:
    counts = None
    if classes is not None:
        values, sizes = np.unique(group["y"][()], return_counts=True)
        counts = {int(value): int(size) for value, size in zip(values, sizes, strict=True)}
    return {
        "rows": int(group["x"].shape[0]),
        "shape": [int(size) for size in group["x"].shape[1:]],
        "dtype": str(group["x"].dtype),
        "label_dtype": str(group["y"].dtype),
        "counts": counts,
    }
