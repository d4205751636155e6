"""HDF5 files made without HDF5 ever writing to a disk.

HDF5 1.10 crashes the process where its disk is full, so it makes only the file's structure, in memory:
contiguous datasets with their room allocated and nothing in it, which takes a few KiB whatever their size.
The file then gets its full length (`files.reserve`: no room is said at once), the structure, and the rows,
block by block, as plain bytes at the offsets of the datasets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcopt.ground import files
from hpcopt.storage import digests
from hpcopt.storage.file_like import Sparse
from hpcopt.storage.place import Place, Rows
from hpcopt.storage.schema import DIGESTS, RECORD, SCHEMA, SCHEMA_VERSION, Schema, dtype_of, group_of, unit_of

LIBVER = ("v108", "v110")
"""versions of HDF5 that read what is written"""
COPIES = ("", "twin/")
"""where the two copies of an array are"""
NOTHING = np.empty(0)


def write(
    path: Path, schema: Schema, attributes: Mapping[str, Any], known: Mapping[str, Rows], copies: int
) -> dict[str, Place]:
    """Replaces a run.h5 by one of this schema. Local.

    Args:
        path: the file.
        schema: what it has room for.
        attributes: of its root.
        known: column -> its first rows; the others are missing.
        copies: how many copies of arrays there are, 1 or 2.

    Returns:
        Where every column and every coordinate of arrays is.

    Raises:
        UserError: it cannot be written; what was there stays.
    """
    known = dict(known) | digests.of_known(schema, known)
    schema = digests.with_digests(schema)
    structure = Sparse()
    with h5py.File(structure, "w", libver=LIBVER) as file:
        about = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "digests": DIGESTS}
        file.attrs.update(dict(attributes) | about)
        places = _structure(file, schema, copies)
    content = known | coordinates(schema, schema.columns, known)
    with files.replacing(path) as partial, partial.open("wb", buffering=0) as stream:
        stream.truncate(structure.size)
        files.reserve(partial)
        for at, page in structure.pages():
            files.write_at(stream.fileno(), page, at)
        for name, place in places.items():
            place.fill(stream.fileno(), content.get(name.removeprefix(COPIES[1]), NOTHING))
    return places


def coordinates(
    schema: Schema, columns: Iterable[str], known: Mapping[str, Rows]
) -> dict[str, NDArray[np.int64]]:
    """Coordinates of leading dimensions: 0, 1, … for all records, and for the known rows of arrays."""
    lengths: dict[str, int] = {}
    for name in columns:
        scale = _leading(schema, name)
        records = schema.columns[name][0] == RECORD
        length = schema.capacity[RECORD] if records else len(known.get(name, ()))
        lengths[scale] = max(length, lengths.get(scale, 0))
    return {scale: np.arange(length) for scale, length in lengths.items()}


def _leading(schema: Schema, column: str) -> str:
    """The name of the coordinate of a column's leading dimension."""
    return f"{group_of(column)}/{schema.columns[column][0]}"


def _structure(file: h5py.File, schema: Schema, copies: int) -> dict[str, Place]:
    """Makes groups, datasets and dimension scales; writes only the coordinates of fixed dimensions."""
    places, scales = {}, {}  # to look an object up by its name takes longer than to make it
    for column, dims in schema.columns.items():
        for copy in COPIES[: 1 if dims[0] == RECORD else copies]:
            names = [f"{copy}{group_of(column)}/{dim}" for dim in dims]
            if (lead := names[0]) not in scales:
                scales[lead], places[lead] = _room(file, lead, (schema.capacity[dims[0]],), np.int64)
                scales[lead].make_scale(dims[0])
            for dim, name in zip(dims[1:], names[1:], strict=True):
                if name not in scales:
                    scales[name] = _labels(file, name, schema.dimensions[dim])
            data, places[copy + column] = _room(file, copy + column, schema.shape(column), dtype_of(column))
            for axis, (dim, name) in enumerate(zip(dims, names, strict=True)):
                data.dims[axis].label = dim
                data.dims[axis].attach_scale(scales[name])
    return places


def _room(
    file: h5py.File, name: str, shape: tuple[int, ...], dtype: type[np.generic]
) -> tuple[h5py.Dataset, Place]:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    dataset = file.create_dataset(name, shape, dtype, dcpl=properties)
    dataset.attrs["units"] = unit_of(name)
    # a dataset without elements has no place
    return dataset, Place(dataset.id.get_offset() or 0, shape, np.dtype(dtype))


def _labels(file: h5py.File, name: str, values: list[Any]) -> h5py.Dataset:
    """Makes the scale of a fixed dimension."""
    text = bool(values) and isinstance(values[0], str)
    data = np.array(values, dtype=object if text else np.int64)
    scale = file.create_dataset(name, data=data, dtype=h5py.string_dtype() if text else None)
    scale.make_scale(name.rpartition("/")[2])
    scale.attrs["units"] = "1"
    return scale
