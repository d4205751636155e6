"""Makes the HDF5 file of sparse rows from svmlight text: two passes over the text, in bounded memory."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcopt.errors import UserError
from hpcopt.ground.stamps import now
from hpcopt.math.streams import stream
from hpcopt.problems.data.data_file import SCHEMA, SPARSE
from hpcopt.problems.data.dataset import count_classes
from hpcopt.problems.data.shuffle import Shuffle
from hpcopt.problems.data.svmlight import LARGEST_INDEX, blocks
from hpcopt.problems.data.writer import check_new, new_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import h5py
    from numpy.typing import NDArray

    Report = Callable[[int, int], None]

CHUNK_BYTES = 256 << 10


@dataclass(frozen=True)
class Source:
    """What the first pass over a file finds out.

    Attributes:
        path: the file.
        labels: (rows,) float64, in the file's order.
        lengths: numbers in each row, (rows,).
        features: the largest index.
        single: whether float32 holds every number exactly.
        order: which row becomes the first, the second, …
        train: how many of these are training rows; the others are test rows.
    """

    path: Path
    labels: NDArray[np.float64]
    lengths: NDArray[np.int64]
    features: int
    single: bool
    order: NDArray[np.int64]
    train: int

    @property
    def groups(self) -> Iterator[tuple[str, int, int]]:
        """(name, first, end) of the new rows that each group gets."""
        for name, start, stop in (("train", 0, self.train), ("test", self.train, len(self.order))):
            if start < stop:
                yield name, start, stop


def import_svmlight(
    source: Path,
    out: Path,
    progress: Report | None = None,
    *,
    test: Path | None = None,
    test_fraction: float | None = None,
    features: int | None = None,
) -> None:
    """Imports svmlight text, plain or .gz, .bz2, .xz; the rows of each file are shuffled, always alike.

    In memory are about 50 bytes per row, and 90 MB whatever the size (more where a single line is longer than
    1 MiB); a temporary file beside ``out`` takes as much room as ``out``.

    Args:
        source: the training rows.
        out: the file to make, .h5 or .hdf5; must not exist.
        progress: called after every block with the rows done and the rows in all.
        test: the test rows.
        test_fraction: instead of ``test``: the part of all rows, in (0, 1), that becomes test rows.
        features: the length of a row; the largest index in the files if None.

    Raises:
        UserError: names the file, the line, and what is wrong with it; then ``out`` does not exist.
    """
    check_new(out)
    if features is not None and not 1 <= features <= LARGEST_INDEX:
        raise UserError(f"features = {features}: must be 1…{LARGEST_INDEX}")
    if test_fraction is not None and (test is not None or not 0 < test_fraction < 1):
        raise UserError(f"test_fraction = {test_fraction}: must be in (0, 1), and not beside a test file")
    sources = [_first_pass(source, 0, features, test_fraction)]
    if test is not None:
        sources.append(_first_pass(test, 1, features, 1.0))
    length = features or max(found.features for found in sources)
    if length == 0:
        raise UserError(f"{source}: holds labels, but not one index:value")
    _write(sources, out, length, progress)


def _first_pass(path: Path, place: int, features: int | None, fraction: float | None) -> Source:
    labels, lengths, largest, single = [], [], 0, True
    for block in blocks(path, features):
        labels.append(block.labels)
        lengths.append(block.lengths)
        largest = max(largest, int(block.indices.max(initial=-1)) + 1)
        single = single and _fit_float32(block.values)
    rows = sum(map(len, labels))
    if rows == 0:
        raise UserError(f"{path}: holds no rows; a row is: label index:value index:value …")
    tests = 0 if fraction is None else round(fraction * rows)
    if fraction is not None and fraction < 1 and not 0 < tests < rows:
        raise UserError(f"{path}: test_fraction = {fraction} of {rows} rows leaves no train or no test rows")
    order = stream(0, "import rows", place).permutation(rows)
    return Source(path, np.concatenate(labels), np.concatenate(lengths), largest, single, order, rows - tests)


def _fit_float32(values: NDArray[np.float64]) -> bool:
    with np.errstate(over="ignore"):
        return np.array_equal(values.astype(np.float32), values)


def _write(sources: list[Source], out: Path, features: int, progress: Report | None) -> None:
    """The second pass."""
    index = np.int32 if features < 2**31 else np.int64
    value = np.float32 if all(source.single for source in sources) else np.float64
    pair = np.dtype([("index", index), ("value", value)])
    sizes = [int(source.lengths.sum()) * pair.itemsize for source in sources]
    total, done = sum(len(source.order) for source in sources), 0
    with new_file(out, sum(sizes) + max(sizes) + 16 * total) as file:
        for source in sources:
            for rows in _copy(source, file, pair):
                done += rows
                if progress is not None:
                    progress(done, total)
        _write_labels(sources, file)
        names = ", ".join(source.path.name for source in sources)
        file.attrs.update(
            schema=SCHEMA, schema_version=SPARSE, features=np.int64(features), source=names, created=now()
        )


def _copy(source: Source, file: h5py.File, pair: np.dtype[Any]) -> Iterator[int]:
    """Writes a file's rows in their new order; yields how many of them each block of text had."""
    shuffle = Shuffle(str(source.path), source.lengths, source.order, source.train, pair)
    with tempfile.TemporaryFile(dir=file.filename.rpartition("/")[0] or ".") as spill:
        yield from shuffle.scatter(blocks(source.path), spill)
        for name, start, stop in source.groups:
            _make_group(file, name, shuffle.starts[start : stop + 1], pair)
        for first, last, pairs in shuffle.windows(spill):
            name, start = ("train", 0) if last <= source.train else ("test", source.train)
            here = slice(*(shuffle.starts[[first, last]] - shuffle.starts[start]).tolist())
            file[name]["data"][here] = pairs["value"]
            file[name]["indices"][here] = pairs["index"]


def _make_group(file: h5py.File, name: str, starts: NDArray[np.int64], pair: np.dtype[Any]) -> None:
    group = file.create_group(name)
    for key, field in (("data", "value"), ("indices", "index")):
        _dataset(group, key, int(starts[-1] - starts[0]), pair[field])
    _dataset(group, "indptr", len(starts), starts.dtype)[:] = starts - starts[0]


def _write_labels(sources: list[Source], file: h5py.File) -> None:
    labels: dict[str, NDArray[Any]] = {
        name: source.labels[source.order[start:stop]]
        for source in sources
        for name, start, stop in source.groups
    }
    if all((y == np.trunc(y)).all() and np.abs(y).max() < 2**53 for y in labels.values()):
        labels = {name: y.astype(np.int64) for name, y in labels.items()}
        classes = count_classes(list(labels.values()))
        if classes is not None:
            file.attrs["classes"] = classes
    for name, y in labels.items():
        _dataset(file[name], "y", len(y), y.dtype)[:] = y


def _dataset(group: h5py.Group, key: str, size: int, dtype: np.dtype[Any]) -> Any:
    if size == 0:
        return group.create_dataset(key, (0,), dtype)  # has no chunks
    chunk = min(size, CHUNK_BYTES // dtype.itemsize)
    return group.create_dataset(key, (size,), dtype, chunks=(chunk,), fletcher32=True)
