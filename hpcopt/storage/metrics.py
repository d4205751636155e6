"""run.h5: the metrics of a run, readable at every moment, whatever is killed when.

Nothing in the file grows while a job runs. It is made complete, filled with "missing", under a temporary
name and renamed (`hpcopt.storage.image`); records are then written in place, as plain bytes at the offsets
of contiguous datasets, so HDF5's own structures never change on the disk. What needs another structure, a
column that appears late, an earlier job's file, the end of the run, is a new file that takes the name.

The file itself says what is valid. Of columns led by ``record`` those rows count whose ``/metrics/round`` is
there (not -1), up to the first that is not; it is written last. The groups that a method keeps as a whole
(``/staleness``, ``/spectrum``) are there twice while a job runs, as ``/GROUP`` and ``/twin/GROUP``, each with
a coordinate of its own that is -1 beyond the rows that count. With k records ``/GROUP`` counts if k is even,
the twin if k is odd. Record k + 1 writes the copy that does not count yet, and its round then makes it
count: at no moment is anything overwritten that a reader would take, so a kill leaves the file as of its last
complete record, arrays included. A reader that finds as many rounds after it has read arrays as before has
not been overtaken. Finished files have no twin, and only rows that count.

One process writes (rank 0); these are small numbers that all ranks have already agreed on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcopt.ground import files
from hpcopt.storage import digests, image
from hpcopt.storage.place import Place, Rows
from hpcopt.storage.records import Records, read_header, read_records
from hpcopt.storage.relabel import Relabelled
from hpcopt.storage.schema import LAST_WRITTEN, RECORD, SCHEMA_VERSION, Schema, dtype_of

__all__ = ["SCHEMA_VERSION", "Records", "RunFile", "Schema", "read_header", "read_records"]


class RunFile:
    """Writes records into run.h5; made by `create` or `reopen`. Local; to be used by one process only.

    Attributes:
        path: the file.
        count: how many records it holds.
    """

    def __init__(self, path: Path, schema: Schema, flush_seconds: float) -> None:
        self.path, self.count = path, 0
        self._wanted = self._schema = schema  # what the caller asked for; what the file has
        self._flush_seconds, self._flushed = flush_seconds, time.monotonic()
        self._arrays: dict[str, NDArray[np.generic]] = {}
        self._places: dict[str, Place] = {}
        self._descriptor = -1

    @classmethod
    def create(
        cls, path: Path, schema: Schema, attributes: Mapping[str, Any], flush_seconds: float
    ) -> RunFile:
        """Makes a file without records.

        Args:
            path: the file; what is there is replaced.
            schema: what will be recorded, and for how much there is room.
            attributes: of the root.
            flush_seconds: records are forced to the disk at least so often [s].

        Raises:
            UserError: it cannot be written.
        """
        file = cls(path, schema, flush_seconds)
        file._make(attributes, {})
        return file

    @classmethod
    def reopen(
        cls, path: Path, schema: Schema, attributes: Mapping[str, Any], flush_seconds: float, up_to: int
    ) -> RunFile:
        """Keeps an earlier job's records up to and including round ``up_to``, and makes room for more.

        Columns are matched by name and, along fixed dimensions, by label: a port that is new has "missing"
        before, and of labels those stay that the schema lists. Columns that only the earlier file has stay,
        and so do arrays, until the method hands over its own.

        Args:
            path, attributes, flush_seconds: see `create`.
            schema: what will be recorded; room for records is beside that for those that are kept.
            up_to: the round of the checkpoint.

        Raises:
            UserError: it cannot be read or written, or a column has other dimensions.
        """
        with Records(path, up_to) as earlier:
            file = cls(path, schema, flush_seconds)
            file._keep(earlier, attributes)
            return file

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one record; columns that are not given stay missing, and arrays as they are.

        Args:
            record: column -> one row of it, or all of an array. A column may be new if its group has another
                of as many dimensions; the file is then made anew.

        Raises:
            UserError: the disk refuses.
        """
        fits = all(self._schema.fits(name, value) for name, value in record.items())
        if not fits or self.count == self._places[LAST_WRITTEN].shape[0]:
            self._extend(record)
        with files.refusals(self.path):
            self._write_arrays(record)
            row = {
                name: np.asarray(record[name], dtype_of(name)) for name in record.keys() - self._arrays.keys()
            }
            assert {name: value.shape for name, value in row.items()} == {
                name: self._schema.row(name) for name in row
            }
            row |= digests.of_record(self._schema, row, self._arrays)
            for name in sorted(row, key=LAST_WRITTEN.__eq__):
                self._places[name].put(self._descriptor, self.count, row[name][None])
        self.count += 1
        if time.monotonic() - self._flushed > self._flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Forces what was appended to the disk; raises as `append`."""
        with files.refusals(self.path):
            os.fdatasync(self._descriptor)
        self._flushed = time.monotonic()

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Replaces the file by one of exactly what is valid, with more attributes, and closes it.

        Raises:
            UserError: it cannot be written; the longer file stays.
        """
        self.close()
        with Records(self.path) as found:
            attributes = found.attributes | dict(attributes)
            image.write(self.path, found.schema(), attributes, found.columns, copies=1)

    def close(self) -> None:
        """Leaves the file as it is."""
        if self._descriptor >= 0:
            self.flush()
            os.close(self._descriptor)
            self._descriptor = -1

    def _write_arrays(self, record: Mapping[str, Any]) -> None:
        """Puts all arrays into the copy that counts once this record is complete; raises OSError."""
        for name in self._arrays.keys() & record.keys():
            self._arrays[name] = np.asarray(record[name], dtype=dtype_of(name))
            assert self._arrays[name].shape[1:] == self._schema.row(name), name
        copy = image.COPIES[(self.count + 1) % 2]
        known = self._arrays | image.coordinates(self._schema, self._arrays, self._arrays)
        for name, rows in known.items():
            self._places[copy + name].fill(self._descriptor, rows)

    def _extend(self, record: Mapping[str, Any]) -> None:
        """Makes the file anew with room for a record that does not fit, and for more after it."""
        self.close()
        self._wanted = self._schema.extended(record, self._wanted.capacity[RECORD])
        with Records(self.path) as earlier:
            self._keep(earlier, earlier.attributes)

    def _keep(self, earlier: Records, attributes: Mapping[str, Any]) -> None:
        """Makes the file with all that an earlier one has."""
        before = earlier.schema()
        self._schema = self._wanted.after(before, self.path)
        known = {
            name: Relabelled(
                column,
                [before.dimensions[dim] for dim in column.dims[1:]],
                [self._schema.dimensions[dim] for dim in column.dims[1:]],
            )
            for name, column in earlier.columns.items()
        }
        self._make(attributes, known)
        self.count = earlier.count

    def _make(self, attributes: Mapping[str, Any], known: Mapping[str, Rows]) -> None:
        self._places = image.write(self.path, self._schema, attributes, known, copies=2)
        self._arrays = {
            name: known[name][:] if name in known else np.empty((0, *self._schema.row(name)), dtype_of(name))
            for name in self._schema.arrays
        }
        with files.refusals(self.path):
            self._descriptor = os.open(self.path, os.O_RDWR)
