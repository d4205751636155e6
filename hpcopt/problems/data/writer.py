"""Writes the HDF5 data file of `hpcopt.problems.data.hdf5`, block by block: whole or not at all."""

from __future__ import annotations

import os
import resource
import shutil
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcopt.errors import UserError
from hpcopt.problems.data.dataset import Moments
from hpcopt.problems.data.hdf5 import SCHEMA, VERSION, open_hdf5

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import h5py
    from numpy.typing import NDArray

CHUNK_BYTES = 64 << 10
PROBE_BYTES = 1 << 20  # also covers what HDF5 adds to small files


class SplitWriter:
    """Appends rows to one group of known size."""

    def __init__(
        self,
        file: h5py.File,
        name: str,
        rows: int,
        x: tuple[tuple[int, ...], np.dtype[Any]],
        y: tuple[tuple[int, ...], np.dtype[Any]],
    ) -> None:
        """``x`` and ``y`` are the shape of one row and its dtype."""
        group = file.create_group(name)
        self._x, self._y = (_dataset(group, key, rows, *of) for key, of in (("x", x), ("y", y)))
        self._filled = 0
        self._is_train = name == "train"
        self.moments = Moments()
        self.smallest_label = np.inf
        self.largest_label = -np.inf

    def append(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        """Writes rows x (k, *shape) and y (k, …); raises `UserError` for numbers that are not finite."""
        if len(x) == 0:
            return
        stop = self._filled + len(x)
        for block, name in ((x, "x"), (y, "y")):
            if block.dtype.kind == "f" and not np.isfinite(block).all():
                raise UserError(
                    f"{name} holds numbers that are not finite, within rows {self._filled}…{stop - 1}"
                )
        self._x[self._filled : stop] = x
        self._y[self._filled : stop] = y
        self._filled = stop
        self.smallest_label = min(self.smallest_label, y.min())
        self.largest_label = max(self.largest_label, y.max())
        if self._is_train:
            self.moments.update(x)


def _dataset(group: h5py.Group, key: str, rows: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    row_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    chunk = (min(rows, max(1, CHUNK_BYTES // row_bytes)), *shape)
    return group.create_dataset(key, (rows, *shape), dtype, chunks=chunk, fletcher32=True)


def write_attributes(file: h5py.File, writers: dict[str, SplitWriter], source: str) -> None:
    """The root attributes, once all rows are in."""
    moments = writers["train"].moments
    if not np.isfinite([moments.mean, moments.std]).all():
        raise UserError("x holds numbers too large for their mean and deviation")
    file.attrs.update(
        schema=SCHEMA,
        schema_version=VERSION,
        mean=moments.mean,
        std=moments.std,
        source=source,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    labels = [file[name]["y"] for name in writers]
    whole = all(y.ndim == 1 and y.dtype.kind in "iub" for y in labels)
    if whole and min(writer.smallest_label for writer in writers.values()) >= 0:
        file.attrs["classes"] = 1 + max(int(writer.largest_label) for writer in writers.values())


@contextmanager
def new_file(out: Path, nbytes: int) -> Iterator[h5py.File]:
    """A file to fill that appears under its name ``out`` when the block ends, and not if it fails.

    Args:
        out: the final name, which must not exist.
        nbytes: about how much will be written.

    Raises:
        UserError: the name is taken or cannot be written, or the disk is full.
    """
    import h5py  # with a parallel HDF5, importing it starts MPI: not before it is needed

    if out.suffix not in (".h5", ".hdf5"):
        raise UserError(f"{out}: the name must end in .h5 or .hdf5")
    if not out.parent.is_dir():
        raise UserError(f"{out}: cannot be written, {out.parent} is not a directory")
    _refuse_existing(out)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        _probe(partial, out, nbytes)
        with h5py.File(partial, "w", driver="sec2", locking=False) as file:
            with _room_to_close(partial):
                yield file
                file.flush()
        _sync(partial)
        open_hdf5(partial)
        _refuse_existing(out)  # someone else may have been quicker
        partial.rename(out)
        _sync(out.parent)
    except (OSError, RuntimeError) as error:  # h5py's ways to say that writing failed
        number = getattr(error, "errno", None)
        raise UserError(f"{out}: cannot be written ({os.strerror(number) if number else error})") from error
    finally:
        partial.unlink(missing_ok=True)


def _probe(partial: Path, out: Path, nbytes: int) -> None:
    """Finds out what would stop HDF5, which may crash where it cannot even write its header."""
    with partial.open("xb") as file:
        free = shutil.disk_usage(out.parent).free
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        most = free if limit == resource.RLIM_INFINITY else min(free, limit)
        if most < nbytes + PROBE_BYTES:
            raise UserError(
                f"{out}: cannot be written, it needs {nbytes + PROBE_BYTES} bytes, but only {most} are free"
            )
        file.write(bytes(PROBE_BYTES))  # a quota shows only in writing
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _room_to_close(partial: Path) -> Iterator[None]:
    """Where writing failed, gives the space back at once, so that HDF5 can close on a disk that was full.

    It crashes at the end of the process otherwise (1.10 does).
    """
    try:
        yield
    except BaseException:
        os.truncate(partial, 0)
        raise


def _refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: exists already, and is not overwritten")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
