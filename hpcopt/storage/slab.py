"""The one door to the disk: collective writes of rows into a shared HDF5 file.

A rank may hold no rows at all; it still takes part, with an empty selection (h5py's own collective mode
hangs there). Files are made and sized by rank 0, and the writes of all ranks then fill them.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from hpcopt.storage.image import LIBVER

# one collective write moves at most so many bytes per rank
MAX_WRITE = 1 << 30


def parallel_hdf5() -> bool:
    """Whether this h5py can write one file from several ranks."""
    return bool(h5py.get_config().mpi)


def open_shared(comm: MPI.Comm, path: Path) -> h5py.File:
    """Opens an existing file for writing by all ranks. Collective."""
    if comm.size == 1:
        return h5py.File(path, "r+", libver=LIBVER)
    return h5py.File(path, "r+", driver="mpio", comm=comm, libver=LIBVER)


def write_rows(comm: MPI.Comm, dataset: h5py.Dataset, start: int, rows: NDArray[np.generic]) -> None:
    """Writes this rank's rows [start, start + len(rows)) of a dataset. Collective; rows may be empty.

    Args:
        comm: all ranks that opened the file.
        dataset: at least one-dimensional, allocated.
        start: the first row, in the dataset's first axis.
        rows: C-contiguous, (rows, *dataset.shape[1:]).
    """
    if 0 in dataset.shape:
        return
    row_bytes = max(1, int(np.prod(dataset.shape[1:], dtype=np.int64)) * dataset.dtype.itemsize)
    step = max(1, MAX_WRITE // row_bytes)
    pieces = comm.allreduce(-(-len(rows) // step), MPI.MAX)
    for piece in range(pieces):
        _write(comm, dataset, start + piece * step, rows[piece * step : (piece + 1) * step])


def _write(comm: MPI.Comm, dataset: h5py.Dataset, start: int, rows: NDArray[np.generic]) -> None:
    transfer = h5py.h5p.create(h5py.h5p.DATASET_XFER)
    if comm.size > 1:
        transfer.set_dxpl_mpio(h5py.h5fd.MPIO_COLLECTIVE)
    target = dataset.id.get_space()
    if rows.size:
        memory = h5py.h5s.create_simple(rows.shape)
        target.select_hyperslab((start,) + (0,) * (rows.ndim - 1), rows.shape)
    else:
        rows = np.zeros((1,) * max(rows.ndim, 1), dtype=dataset.dtype)  # a valid pointer for nothing
        memory = h5py.h5s.create_simple(rows.shape)
        memory.select_none()
        target.select_none()
    dataset.id.write(memory, target, np.ascontiguousarray(rows), dxpl=transfer)
