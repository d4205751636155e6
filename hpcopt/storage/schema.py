"""What a run.h5 holds: its columns, their dimensions, room, types and units. No HDF5 in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpcopt.errors import UserError

SCHEMA = "hpcopt-run"
SCHEMA_VERSION = 2
RECORD = "record"
RECORDED = ("metrics", "workers", "ports", "phases")
"""the groups that have a row for each record, and no array that a method keeps"""
LAST_WRITTEN = "metrics/round"
DIGESTS = "crc32c"
ROW, ARRAYS = "digests/row", "digests/arrays"
"""columns of every file that no schema lists, see `hpcopt.storage.digests`"""

# a word of a column's name -> its unit; every other column is a pure number
_UNITS = {"seconds": "s", "bytes": "B", "payload": "B", "memory": "B"}


@dataclass(frozen=True)
class Schema:
    """The columns of a run, by name ``GROUP/COLUMN``.

    A column led by dimension ``record`` gets one row from every record. One that is led by a dimension of
    its own is an array that a method keeps; every record replaces it as a whole.

    Attributes:
        columns: name -> its dimensions, the leading one first.
        capacity: of every leading dimension, how many rows there is room for.
        dimensions: the coordinate of every other dimension: numbers or names.
    """

    columns: dict[str, tuple[str, ...]]
    capacity: dict[str, int]
    dimensions: dict[str, list[Any]] = field(default_factory=dict)

    def row(self, column: str) -> tuple[int, ...]:
        """The shape of one row of a column."""
        return tuple(len(self.dimensions[name]) for name in self.columns[column][1:])

    def shape(self, column: str) -> tuple[int, ...]:
        """The shape of a column with all its room."""
        return (self.capacity[self.columns[column][0]], *self.row(column))

    @property
    def arrays(self) -> list[str]:
        """The columns that records replace as a whole."""
        return [name for name, dims in self.columns.items() if dims[0] != RECORD]

    def fits(self, column: str, value: Any) -> bool:
        """Whether a record's value is a column that is known, and there is room for it."""
        if column not in self.columns:
            return False
        return self.columns[column][0] == RECORD or len(value) <= self.capacity[self.columns[column][0]]

    def dims_like(self, column: str, value: Any) -> tuple[str, ...]:
        """The dimensions of a column; of one that appears late, those of a neighbour in its group.

        Raises:
            ValueError: none of them is like it; the schema that a file is made with must list the column.
        """
        if column in self.columns:
            return self.columns[column]
        for name, dims in self.columns.items():
            like = len(dims) - (dims[0] == RECORD) == np.ndim(value)
            if like and group_of(name) == group_of(column):
                return dims
        raise ValueError(f"{column}: no column of its group says what its dimensions are")

    def extended(self, record: Mapping[str, Any], records: int) -> Schema:
        """The same with a record's new columns, room for arrays that outgrew it, and for so many records."""
        columns = {name: self.dims_like(name, value) for name, value in record.items()}
        room = self.capacity | {RECORD: records}
        for name, value in record.items():
            lead = columns[name][0]
            if lead != RECORD and len(value) > self.capacity[lead]:
                room[lead] = 2 * len(value)
        return Schema(self.columns | columns, room, self.dimensions)

    def after(self, earlier: Schema, where: object) -> Schema:
        """The schema of a file that keeps everything of an earlier one and has room for as much as this.

        Dimensions of both have the coordinate that they have here.

        Raises:
            UserError: a column has other dimensions in the file ``where``.
        """
        for name in self.columns.keys() & earlier.columns.keys():
            if self.columns[name] != earlier.columns[name]:
                raise UserError(
                    f"{where}: {name} has dimensions {earlier.columns[name]}, but now {self.columns[name]}"
                )
        capacity = dict(earlier.capacity)
        for name, room in self.capacity.items():
            kept = capacity.get(name, 0)
            # a run that is extended again and again has more last records than its rounds foretell
            capacity[name] = kept + room if name == RECORD else max(kept, room)
        return Schema(
            self.columns | {n: d for n, d in earlier.columns.items() if n not in self.columns},
            capacity,
            earlier.dimensions | self.dimensions,
        )


def group_of(column: str) -> str:
    """The group of a column."""
    return column.rpartition("/")[0]


def dtype_of(column: str) -> type[np.generic]:
    """float64, but for rounds, digests, numbers of rows, and the counts of groups that a method keeps."""
    counts = group_of(column) == "rows" or (column.endswith("/count") and group_of(column) not in RECORDED)
    return np.int64 if column in (LAST_WRITTEN, ROW, ARRAYS) or counts else np.float64


def missing(dtype: Any) -> float:
    """What stands where nothing was measured."""
    return -1 if np.issubdtype(dtype, np.integer) else np.nan


def unit_of(column: str) -> str:
    """The unit of a column, by the words of its name."""
    words = column.rpartition("/")[2].split("_")
    return next((unit for word, unit in _UNITS.items() if word in words), "1")
