"""run.h5: the metrics of a run, readable at every moment, whatever is killed when.

Nothing in the file grows while a job runs. It is made complete, filled with "missing", under a temporary
name and renamed; records are then written in place, as plain bytes at the offsets of contiguous datasets,
so HDF5's own structures never change on the disk. ``/metrics/round`` of a record is written last: what has
no round does not count. When the run ends, or goes on after an interruption, a new file takes the name.

One process writes (rank 0); these are small numbers that all ranks have already agreed on.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcopt.errors import UserError
from hpcopt.storage import files
from hpcopt.storage.slab import LIBVER

SCHEMA = "hpcopt-run"
SCHEMA_VERSION = 1
LAST_WRITTEN = "metrics/round"

UNITS = {
    "round": "1",
    "seconds": "s",
    "epochs": "1",
    "gradients": "1",
    "bytes_sent": "B",
    "bytes_workers": "B",
    "bytes": "B",
    "calls": "1",
}


@dataclass(frozen=True)
class Schema:
    """What a run records.

    Attributes:
        columns: name -> dimensions beside ``record``: ``{"metrics/loss": (), "workers/loss": ("worker",)}``.
        dimensions: dimension -> its coordinate, for those beside ``record``.
    """

    columns: dict[str, tuple[str, ...]]
    dimensions: dict[str, list[Any]] = field(default_factory=dict)

    def shape(self, column: str) -> tuple[int, ...]:
        """One record's shape of a column."""
        return tuple(len(self.dimensions[name]) for name in self.columns[column])


Records = dict[str, NDArray[np.generic]]


class RunFile:
    """Writes records into an existing run.h5. Local; to be used by one process only.

    Args:
        path: a file made by `create` or `reopen`.
        schema: what it was made with.
        count: how many records it holds already.
        flush_seconds: records are forced to the disk at least so often [s].
    """

    def __init__(self, path: Path, schema: Schema, count: int, flush_seconds: float) -> None:
        self.path, self._schema, self.count = path, schema, count
        self._flush_seconds, self._flushed = flush_seconds, time.monotonic()
        with h5py.File(path, "r") as file:
            self._offsets = {name: file[name].id.get_offset() for name in schema.columns}
        self._descriptor = os.open(path, os.O_RDWR)

    @classmethod
    def create(
        cls, path: Path, schema: Schema, capacity: int, attributes: Mapping[str, Any], flush_seconds: float
    ) -> RunFile:
        """Makes a file with room for ``capacity`` records.

        Raises:
            UserError: it cannot be written.
        """
        _write(path, schema, {}, capacity, attributes)
        return cls(path, schema, 0, flush_seconds)

    @classmethod
    def reopen(
        cls,
        path: Path,
        schema: Schema,
        capacity: int,
        attributes: Mapping[str, Any],
        flush_seconds: float,
        up_to: int,
    ) -> RunFile:
        """Keeps an earlier job's records up to and including round ``up_to``, and makes room for more.

        Raises:
            UserError: it cannot be read or written.
        """
        kept = {name: rows for name, rows in read_records(path, up_to).items() if name in schema.columns}
        count = len(kept[LAST_WRITTEN])
        # a run that is extended again and again has more last records than its rounds foretell
        _write(path, schema, kept, capacity + count, attributes)
        return cls(path, schema, count, flush_seconds)

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one record; columns that are not given stay missing.

        Raises:
            UserError: the disk refuses.
        """
        names = [name for name in record if name != LAST_WRITTEN] + [LAST_WRITTEN]
        with files.refusals(self.path):
            for name in names:
                row = np.asarray(record[name], dtype=_dtype(name))
                assert row.shape == self._schema.shape(name), name
                os.pwrite(self._descriptor, row.tobytes(), self._offsets[name] + self.count * row.nbytes)
        self.count += 1
        if time.monotonic() - self._flushed > self._flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Forces what was appended to the disk; raises as `append`."""
        with files.refusals(self.path):
            os.fdatasync(self._descriptor)
        self._flushed = time.monotonic()

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Replaces the file by one of exactly its records, with more attributes, and closes it.

        Raises:
            UserError: it cannot be written; the longer file stays.
        """
        self.close()
        with h5py.File(self.path, "r") as file:
            before = dict(file.attrs)
        records = read_records(self.path)
        _write(self.path, self._schema, records, len(records[LAST_WRITTEN]), before | dict(attributes))

    def close(self) -> None:
        """Leaves the file as it is."""
        if self._descriptor >= 0:
            self.flush()
            os.close(self._descriptor)
            self._descriptor = -1


def read_records(path: Path, up_to: int | None = None) -> Records:
    """All columns, cut to the complete records (up to and including a round).

    Raises:
        UserError: the file is not a readable run.h5.
    """
    try:
        with h5py.File(path, "r") as file:
            rounds = file[LAST_WRITTEN][...]
            valid = rounds >= 0 if up_to is None else (rounds >= 0) & (rounds <= up_to)
            # records are written one after the other: the first gap is the end
            count = int(np.argmin(np.append(valid, False)))
            return {
                f"{group}/{name}": dataset[:count]
                for group in file
                for name, dataset in file[group].items()
                if dataset.dims[0].label == "record" and not dataset.is_scale
            }
    except (OSError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable run.h5 ({error})") from None


def _dtype(column: str) -> type[np.generic]:
    return np.int64 if column == LAST_WRITTEN else np.float64


def _write(
    path: Path, schema: Schema, records: Records, capacity: int, attributes: Mapping[str, Any]
) -> None:
    with files.replacing(path) as partial:
        partial.write_bytes(_image(schema, records, capacity, attributes))


def _image(schema: Schema, records: Records, capacity: int, attributes: Mapping[str, Any]) -> bytes:
    """The file's bytes, made in memory: HDF5 1.10 crashes the process where its disk is full."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=LIBVER) as file:
        file.attrs.update({"schema": SCHEMA, "schema_version": SCHEMA_VERSION} | dict(attributes))
        for column, dims in schema.columns.items():
            group, _, name = column.rpartition("/")
            _scales(file.require_group(group), capacity, {dim: schema.dimensions[dim] for dim in dims})
            missing = -1 if column == LAST_WRITTEN else np.nan
            rows = np.full((capacity, *schema.shape(column)), missing, dtype=_dtype(column))
            known = records.get(column)
            if known is not None:
                rows[: len(known)] = known
            dataset = file[group].create_dataset(name, data=rows)
            dataset.attrs["units"] = UNITS.get(name, "1")
            for axis, dim in enumerate(("record", *dims)):
                dataset.dims[axis].label = dim
                dataset.dims[axis].attach_scale(file[group][dim])
    return buffer.getvalue()


def _scales(group: h5py.Group, capacity: int, dimensions: dict[str, list[Any]]) -> None:
    """Makes the dimension scales that a group does not have yet."""
    for name, values in {"record": list(range(capacity)), **dimensions}.items():
        if name not in group:
            text = bool(values) and isinstance(values[0], str)
            data = np.array(values, dtype=object if text else np.int64)
            scale = group.create_dataset(name, data=data, dtype=h5py.string_dtype() if text else None)
            scale.make_scale(name)
            scale.attrs["units"] = "1"


def read_header(path: Path) -> dict[str, Any]:
    """The root attributes; empty where there is no run.h5.

    Raises:
        UserError: the file is not a readable run.h5.
    """
    if not path.exists():
        return {}
    try:
        with h5py.File(path, "r") as file:
            return {name: getattr(value, "item", lambda v=value: v)() for name, value in file.attrs.items()}
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable run.h5 ({error})") from None
