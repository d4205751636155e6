"""Writes the HDF5 data file of `hpcopt.problems.data.hdf5`, block by block: whole or not at all."""

from __future__ import annotations

import os
import resource
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcopt.errors import UserError
from hpcopt.ground import files
from hpcopt.ground.stamps import now
from hpcopt.problems.data.data_file import DENSE, SCHEMA
from hpcopt.problems.data.dataset import Moments
from hpcopt.problems.data.hdf5 import open_hdf5

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import h5py
    from numpy.typing import NDArray

CHUNK_BYTES = 64 << 10
PIECE_BYTES = 1 << 20
SPARE_PIECES = 8  # four chunk caches of 1 MiB, and as much again


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
        schema_version=DENSE,
        mean=moments.mean,
        std=moments.std,
        source=source,
        created=now(),
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

    check_new(out)
    partial, spare = (out.with_name(f".{out.name}.{os.getpid()}.{end}") for end in ("partial", "spare"))
    try:
        _reserve(spare, out, nbytes)
        with h5py.File(partial, "x", driver="sec2", locking=False) as file, _room_to_close(partial, spare):
            yield file
        files.force(partial)
        open_hdf5(partial)
        _refuse_existing(out)  # someone else may have been quicker
        partial.rename(out)
        files.force(out.parent)
    except (OSError, RuntimeError) as error:  # h5py's ways to say that writing failed
        number = getattr(error, "errno", None)
        raise UserError(f"{out}: cannot be written ({os.strerror(number) if number else error})") from error
    finally:
        for path in (partial, spare):
            path.unlink(missing_ok=True)


def check_new(out: Path) -> None:
    """Raises `UserError` where no file of this name can be made."""
    if out.suffix not in (".h5", ".hdf5"):
        raise UserError(f"{out}: the name must end in .h5 or .hdf5")
    if not os.path.isdir(out.parent):
        raise UserError(f"{out}: cannot be written, {out.parent} is not a directory")
    _refuse_existing(out)


def _reserve(spare: Path, out: Path, nbytes: int) -> None:
    """Makes sure that there is room for ``nbytes``, and fills the file that keeps room for the end."""
    pieces = SPARE_PIECES + nbytes // (PIECE_BYTES * 256)  # HDF5's index of chunks is a thousandth
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    free = shutil.disk_usage(out.parent).free
    most = free if limit == resource.RLIM_INFINITY else min(free, limit)
    needed = nbytes + pieces * PIECE_BYTES
    if most < needed:
        raise UserError(f"{out}: cannot be written, it needs {needed} bytes, but only {most} are free")
    with spare.open("xb") as file:
        for _ in range(pieces):  # written, not only asked for: a quota shows in nothing else
            file.write(bytes(PIECE_BYTES))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _room_to_close(partial: Path, spare: Path) -> Iterator[None]:
    """Lets HDF5 close its file on a full disk too; 1.10 crashes at the end of the process where it cannot.

    What it still holds in its caches goes where the spare file was; where a write failed before, the file is
    lost anyhow, and all its space is given back.
    """
    try:
        yield
    except BaseException:
        os.truncate(partial, 0)
        raise
    finally:
        spare.unlink()


def _refuse_existing(out: Path) -> None:
    if os.path.lexists(out):
        raise UserError(f"{out}: exists already, and is not overwritten")
