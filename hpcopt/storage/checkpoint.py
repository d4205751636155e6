"""Checkpoints: global arrays with digests, written by all ranks, verified before they get their name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from hpcopt.control.agree import agree, agreed
from hpcopt.errors import UserError
from hpcopt.ground import files
from hpcopt.storage import format
from hpcopt.storage.image import LIBVER
from hpcopt.storage.slab import open_shared, parallel_hdf5, write_rows

# HDF5 1.10 crashes the process where it meets a full disk while it closes a file: what it writes by itself,
# headers, digests and meta data, finds its room kept by a spare file
SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Piece:
    """This rank's rows of one global array.

    Attributes:
        name: the array's name in the file.
        shape: its global shape.
        start: the first of this rank's rows.
        rows: this rank's rows, C-contiguous, (rows, *shape[1:]); may be empty.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    rows: NDArray[np.generic]


class Checkpoints:
    """The checkpoints of one run: ``round-%08d.h5`` in a directory, the last ``keep`` of them.

    Args:
        comm: all ranks of the run.
        directory: where they are; made if needed by the first `write`.
        keep: how many of the newest stay.
    """

    def __init__(self, comm: MPI.Comm, directory: Path, keep: int) -> None:
        self._comm, self._directory, self._keep = comm, directory, keep

    def check(self) -> None:
        """Raises `UserError` where these ranks could write none. Collective."""
        agree(
            self._comm,
            self._comm.size == 1 or parallel_hdf5(),
            "checkpoints of several ranks need an h5py built with parallel HDF5 (README, «Installing»)",
        )

    def write(self, round: int, pieces: list[Piece], meta: dict[str, Any]) -> Path:
        """Writes, reads back and commits a checkpoint, then removes those beyond ``keep``. Collective.

        Raises:
            UserError: no space or no permission; earlier checkpoints stay as they are.
        """
        path = self._directory / format.name_of(round)
        partial = files.partial_name(path)
        try:
            self.put(partial, pieces, meta | {"round": round})
            self._read_back(partial)
            with agreed(self._comm):
                if self._comm.rank == 0:
                    files.commit(partial, path)
                    self._prune(path)
        except UserError:
            if self._comm.rank == 0:
                files.discard(partial)
                files.discard(spare_name(partial))
            raise
        return path

    def put(self, path: Path, pieces: list[Piece], meta: dict[str, Any]) -> None:
        """Writes a file and forces it to the disk, as `write` does before it reads it back. Collective."""
        self._allocate(path, pieces)
        write_pieces(self._comm, path, pieces)
        self._summarise(path, pieces, meta)
        with agreed(self._comm):
            files.sync(path)

    def newest(self) -> tuple[Path, dict[str, Any], list[str]] | None:
        """The newest checkpoint that is intact. Collective.

        Returns:
            Its path, its meta data and warnings about damaged ones that were passed over; None if there is
            no intact one.

        Raises:
            UserError: there are checkpoints, but every one is damaged.
        """
        with agreed(self._comm):
            paths = format.listed(self._directory) if self._comm.rank == 0 else []
        paths = self._comm.bcast(paths)
        warnings: list[str] = []
        for path in reversed(paths):
            damage, meta = self._damage(path)
            if damage is None:
                return path, meta, warnings
            warnings.append(f"{path}: damaged, passed over: {damage}")
        if paths:
            raise UserError("\n".join([*warnings, f"{self._directory}: no intact checkpoint is left"]))
        return None

    def _allocate(self, path: Path, pieces: list[Piece]) -> None:
        """Rank 0 makes the file in full size and takes its disk blocks."""
        with agreed(self._comm):
            if self._comm.rank == 0:
                try:
                    self._directory.mkdir(parents=True, exist_ok=True)
                    total = sum(int(np.prod(p.shape)) * p.rows.dtype.itemsize for p in pieces)
                    total += SPARE_BYTES
                    files.hold(spare_name(path), SPARE_BYTES + total // 100_000)
                    files.hold(path, total)
                    allocate(path, pieces)
                except OSError as error:
                    raise UserError(
                        f"{path}: cannot reserve {total} bytes for a checkpoint "
                        f"({error.strerror or error}); earlier checkpoints are untouched"
                    ) from None

    def _summarise(self, path: Path, pieces: list[Piece], meta: dict[str, Any]) -> None:
        meta = meta | {
            "schema": format.SCHEMA,
            "schema_version": format.SCHEMA_VERSION,
            "arrays": {piece.name: list(piece.shape) for piece in pieces},
        }
        tables = {}
        for piece in pieces:
            gathered = self._comm.gather(format.digests(piece.rows, piece.start))
            if gathered is not None:
                tables[piece.name] = np.concatenate(gathered)
        with agreed(self._comm):
            if self._comm.rank == 0:
                try:
                    files.discard(spare_name(path))
                    format.write_summary(path, tables, meta)
                except (OSError, RuntimeError) as error:
                    raise UserError(f"{path}: cannot be completed ({error})") from None

    def _read_back(self, path: Path) -> None:
        self._comm.Barrier()  # what others wrote has to be on the disk too
        files.drop_cache(path)
        damage, _ = self._damage(path)
        if damage is not None:
            raise UserError(f"{path}: reads back differently from what was written: {damage}")

    def _damage(self, path: Path) -> tuple[str | None, dict[str, Any]]:
        """What is wrong with a file, the same answer on every rank; each rank reads its share of it."""
        damage, meta = None, {}
        try:
            meta = format.read_meta(path)
            mine = format.extents(path, meta)[self._comm.rank :: self._comm.size]
            format.check(path, mine)
        except format.Damaged as error:
            damage = str(error)
        found = [text for text in self._comm.allgather(damage) if text is not None]
        return (found[0] if found else None), meta

    def _prune(self, written: Path) -> None:
        """Removes what is beyond ``keep``, and what killed jobs left half-written.

        What was just written always stays: later rounds may be there, damaged, that were passed over.
        """
        others = [path for path in format.listed(self._directory) if path != written]
        for path in others[: max(0, len(others) + 1 - self._keep)]:
            files.discard(path)
        for path in self._directory.glob(f"*{files.PARTIAL}"):
            files.discard(path)


def spare_name(path: Path) -> Path:
    """The file that keeps room for the end of ``path``."""
    return files.partial_name(path.with_name(path.name + ".spare"))


def allocate(path: Path, pieces: list[Piece]) -> None:
    """Makes a file with every array in full size, its disk blocks taken, nothing written. Local."""
    files.discard(path)
    with h5py.File(path, "w", libver=LIBVER) as file:
        group = file.create_group("state")
        for piece in pieces:
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple(piece.shape)
            kind = h5py.h5t.py_create(piece.rows.dtype, logical=True)
            h5py.h5d.create(group.id, piece.name.encode(), kind, space, dcpl=properties)
    files.reserve(path)


def write_pieces(comm: MPI.Comm, path: Path, pieces: list[Piece]) -> None:
    """Fills an allocated file with every rank's rows. Collective."""
    with open_shared(comm, path) as file:
        for piece in pieces:
            write_rows(comm, file[f"state/{piece.name}"], piece.start, piece.rows)
