"""Writing trace.h5.

While a job runs rows are appended to a journal beside the file (`hpcopt.storage.journal`). It gets them in
one go, in a copy that then takes its name, where the job ends or, if it was killed, the next one begins; who
reads the trace before that looks into the journal as well. A run that goes on from a checkpoint cuts off what
is later. One process writes, as run.h5.
"""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py

from hpcopt.errors import UserError
from hpcopt.ground import files, inside
from hpcopt.storage import journal
from hpcopt.storage.image import LIBVER
from hpcopt.storage.trace import SCHEMA, SCHEMA_VERSION, Rows, readable
from hpcopt.storage.trace_rows import append, cut, dataset

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
        self._path, self._journal, self._attributes = path, journal.beside(path), dict(attributes)
        self._flush_seconds, self._flushed = flush_seconds, time.monotonic()
        self._waiting: list[journal.Entry] = []
        self._last = 0

    def begin(self, round: int) -> None:
        """Cuts off what was after a round, from which the run goes on; all of it where that is 0.

        Raises:
            UserError: the file is damaged, or cannot be written.
        """
        self._last = round
        files.discard(files.partial_name(self._path))
        if round == 0 or not self._path.exists():
            files.discard(self._path)
            files.discard(self._journal)
            return
        with readable(self._path) as file:
            later = any(inside.dataset(file, "segments/round", "iu")[...] > round)
        if later or self._journal.exists():
            self._settle(round)

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
        """Everything that was appended is on the disk.

        Raises:
            UserError: it cannot be written, and what was there is as it was.
        """
        waiting, self._waiting, self._flushed = self._waiting, [], time.monotonic()
        if not waiting:
            return
        if not self._path.exists():
            with files.replacing(self._path) as partial:
                partial.write_bytes(_empty(self._attributes))
        journal.add(self._journal, waiting)

    def close(self) -> None:
        """Everything that was appended is in the file itself; raises as `flush`."""
        self.flush()
        if self._journal.exists():
            with suppress(UserError):  # no room: the journal still has it
                self._settle(self._last)

    def _settle(self, round: int) -> None:
        """Puts what the journal has into the file, up to a round: into a copy, for which there is room."""
        more = sum(array.nbytes for _, rows in journal.entries(self._journal) for array in rows.values())
        with files.replacing(self._path) as partial:
            shutil.copyfile(self._path, partial)
            with partial.open("r+b") as stream:  # HDF5 cuts off what it does not need
                os.posix_fallocate(stream.fileno(), 0, partial.stat().st_size + more + SPARE_BYTES)
            with h5py.File(partial, "r+", libver=LIBVER) as file:
                append(file, journal.entries(self._journal))
                cut(file, round)
        files.discard(self._journal)


def _empty(attributes: Mapping[str, Any]) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w", libver=LIBVER) as file:
        file.attrs.update(dict(attributes) | {"schema": SCHEMA, "schema_version": SCHEMA_VERSION})
        dataset(file, "segments/round", ())
    return content.getvalue()
