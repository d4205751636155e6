"""Writing trace.h5.

What is appended goes into a copy of the file that then takes its name: a kill leaves the file as it was. A
run that goes on from a checkpoint cuts off what is later. One process writes, as run.h5.
"""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcopt.ground import files
from hpcopt.storage.image import LIBVER
from hpcopt.storage.trace import SCHEMA, SCHEMA_VERSION, Rows, readable

CHUNK_BYTES = 64 << 10
SPARE_BYTES = 1 << 20
"""kept free beside new rows: HDF5 1.10 crashes the process where it meets a full disk"""


class TraceFile:
    """Appends to a trace.h5. Local; to be used by one process only.

    Args:
        path: the file; made when there is something to write.
        attributes: of its root.
        flush_seconds: rows wait in memory for at most so long, where others come [s].
    """

    def __init__(self, path: Path, attributes: Mapping[str, Any], flush_seconds: float) -> None:
        self._path, self._attributes = path, dict(attributes)
        self._flush_seconds, self._flushed = flush_seconds, time.monotonic()
        self._waiting: list[tuple[int, Mapping[str, Rows]]] = []
        self._last = 0

    def begin(self, round: int) -> None:
        """Cuts off what was after a round, from which the run goes on; all of it where that is 0.

        Raises:
            UserError: the file is damaged, or cannot be written.
        """
        self._last = round
        files.discard(files.partial_name(self._path))
        if round == 0:
            files.discard(self._path)
        if not self._path.exists():
            return
        with readable(self._path) as file:
            rounds = file["segments/round"][...]
        keep = int(np.searchsorted(rounds, round, side="right"))
        if keep < len(rounds):
            self._change(0, lambda file: _cut(file, keep))

    def append(self, round: int, rows: Mapping[str, Rows]) -> None:
        """Takes what happened until a round, be it nothing; where it has that already, no more of it.

        Raises as `flush`.
        """
        if round > self._last:
            self._waiting.append((round, rows))
            self._last = round
        if time.monotonic() - self._flushed > self._flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Everything that was appended is in the file, and on the disk.

        Raises:
            UserError: it cannot be written, and is as it was.
        """
        waiting, self._waiting, self._flushed = self._waiting, [], time.monotonic()
        if waiting:
            nbytes = sum(array.nbytes for _, rows in waiting for array in rows.values())
            self._change(nbytes, lambda file: _append(file, waiting))

    def _change(self, nbytes: int, change: Callable[[h5py.File], None]) -> None:
        """Changes a copy of the file, for which there is room, and gives it the name."""
        with files.replacing(self._path) as partial:
            if self._path.exists():
                shutil.copyfile(self._path, partial)
            else:
                partial.write_bytes(_empty(self._attributes))
            with partial.open("r+b") as stream:  # HDF5 cuts off what it does not need
                os.posix_fallocate(stream.fileno(), 0, partial.stat().st_size + nbytes + SPARE_BYTES)
            with h5py.File(partial, "r+", libver=LIBVER) as file:
                change(file)


def _empty(attributes: Mapping[str, Any]) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w", libver=LIBVER) as file:
        file.attrs.update(dict(attributes) | {"schema": SCHEMA, "schema_version": SCHEMA_VERSION})
        _dataset(file, "segments/round", ())
    return content.getvalue()


def _append(file: h5py.File, waiting: list[tuple[int, Mapping[str, Rows]]]) -> None:
    for name in waiting[0][1]:
        data, ends = (
            _dataset(file, name, waiting[0][1][name].shape[1:]),
            _dataset(file, f"segments/{name}", ()),
        )
        lengths = np.cumsum([len(rows[name]) for _, rows in waiting]) + len(data)
        _extend(ends, lengths)
        _extend(data, np.concatenate([rows[name] for _, rows in waiting]))
    _extend(file["segments/round"], np.array([round for round, _ in waiting]))


def _dataset(file: h5py.File, name: str, row: tuple[int, ...]) -> h5py.Dataset:
    """The dataset of this name, made if it is not there; its small numbers are packed."""
    if name in file:
        return file[name]
    chunk = max(1, CHUNK_BYTES // (8 * int(np.prod(row))))
    how: dict[str, Any] = {"chunks": (chunk, *row), "shuffle": True, "compression": "gzip"}
    return file.create_dataset(name, (0, *row), np.int64, maxshape=(None, *row), **how)


def _extend(data: h5py.Dataset, rows: Rows) -> None:
    before = len(data)
    data.resize(before + len(rows), 0)
    data[before:] = rows


def _cut(file: h5py.File, segments: int) -> None:
    for name, ends in file["segments"].items():
        if name != "round":
            file[name].resize(int(ends[segments - 1]) if segments else 0, 0)
        ends.resize(segments, 0)
