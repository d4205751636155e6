"""Digests of what is in a run.h5: they tell what was written from what a disk, or somebody, made of it.

    /digests/row      (record,) int64: CRC-32C of a record: its columns' names, and its row of each, in order
    /digests/arrays   (record,) int64: the same of the arrays that a method keeps, as of that record

They are columns like others: there is room for them from the start, and a record's are written before its
round, which makes it count. Of arrays only those of the last record can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from hpcopt.storage.place import BLOCK_BYTES, Rows
from hpcopt.storage.schema import ARRAYS, LAST_WRITTEN, RECORD, ROW, Schema, dtype_of, missing

NONE = -1
"""of arrays that were replaced since"""


def with_digests(schema: Schema) -> Schema:
    """The schema, with the columns of digests."""
    more = (ROW, ARRAYS) if schema.arrays else (ROW,)
    return replace(schema, columns=schema.columns | dict.fromkeys(more, (RECORD,)))


def of_record(schema: Schema, row: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The digests of one record.

    Args:
        schema: of the file.
        row: its row of some columns; of the others it is "missing".
        arrays: all that there are, as of this record.
    """
    whole = seed(schema.columns)
    for name in names(schema.columns):
        value = row[name] if name in row else np.full(schema.row(name), missing(dtype_of(name)))
        whole = crc32c(np.asarray(value, dtype_of(name)).tobytes(), whole)
    found = {ROW: np.asarray(whole)}
    return found | ({ARRAYS: np.asarray(of_arrays(arrays))} if arrays else {})


def of_known(schema: Schema, known: Mapping[str, Rows]) -> dict[str, Rows]:
    """The digests of all records that a file begins with."""
    count = len(known[LAST_WRITTEN]) if LAST_WRITTEN in known else 0
    last = np.full(count, NONE, np.int64)
    last[count - 1 :] = of_arrays({name: known[name][:] for name in schema.arrays if name in known})
    return {ROW: _Rows(schema, known, count), ARRAYS: last}


def of_arrays(arrays: Mapping[str, NDArray[Any]]) -> int:
    """The digest of arrays, and of how long they are."""
    found = 0
    for name in sorted(arrays):
        rows = np.ascontiguousarray(arrays[name], dtype_of(name))
        found = crc32c(rows.tobytes(), crc32c(f"{name} {len(rows)}".encode(), found))
    return found


def of_rows(columns: list[NDArray[Any]], begin: int) -> NDArray[np.int64]:
    """The digests of successive rows.

    Args:
        columns: these rows of every column, in the order of their names.
        begin: `seed` of the columns.
    """
    count = len(columns[0])
    together = np.empty((count, sum(rows[0].nbytes for rows in columns if count)), np.uint8)
    at = 0
    for rows in columns:
        flat = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).reshape(count, -1) if rows.size else None
        if flat is not None:
            together[:, at : at + flat.shape[1]] = flat
            at += flat.shape[1]
    return np.fromiter((crc32c(row, begin) for row in together), np.int64, count)


def step(row_bytes: int) -> int:
    """How many rows to look at at once."""
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def seed(columns: Mapping[str, tuple[str, ...]]) -> int:
    """What every digest of a row begins with: which columns there are."""
    return int(crc32c("\n".join(names(columns)).encode()))


def names(columns: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The columns that a record's digest is of, in order."""
    return sorted(name for name, dims in columns.items() if dims[0] == RECORD and name not in (ROW, ARRAYS))


class _Rows:
    """The digests of the first rows of columns, made when they are asked for."""

    def __init__(self, schema: Schema, known: Mapping[str, Rows], count: int) -> None:
        self._schema, self._known, self._count = schema, known, count
        self._names, self._seed = names(schema.columns), seed(schema.columns)
        self._row_bytes = sum(8 * prod(schema.row(name)) for name in self._names)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, key: slice, /) -> NDArray[np.int64]:
        rows = range(self._count)[key]
        found, block = np.empty(len(rows), np.int64), step(self._row_bytes)
        for at in range(0, len(rows), block):
            some = rows[at : at + block]
            found[at : at + len(some)] = of_rows(
                [self._column(name, some) for name in self._names], self._seed
            )
        return found

    def _column(self, name: str, rows: range) -> NDArray[Any]:
        dtype = dtype_of(name)
        found = np.full((len(rows), *self._schema.row(name)), missing(dtype), dtype)
        if name in self._known:
            there = self._known[name][rows.start : rows.stop]
            found[: len(there)] = there
        return found
