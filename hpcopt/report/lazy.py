"""The columns of a run.h5 as xarray's lazily read variables.

xarray's own way to HDF5 opens a file by its name again whenever it likes; a running job may have put another
one there. Here it reads from the one file that `Records` holds open.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray
from numpy.typing import NDArray
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from hpcopt.storage.column import Column
from hpcopt.storage.records import Records
from hpcopt.storage.schema import group_of


def tree_of(records: Records) -> xarray.DataTree:
    """A tree of a file's groups; closing it closes the file."""
    groups: dict[str, dict[str, Column]] = {}
    for name, column in records.columns.items():
        groups.setdefault(group_of(name), {})[name.rpartition("/")[2]] = column
    datasets = {
        group: xarray.open_dataset((columns, records.labels), engine=_Columns)  # type: ignore[arg-type]
        for group, columns in groups.items()
    }
    tree = xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=records.attributes), **datasets})
    tree.set_close(_Close(records))
    return tree


class _Close:
    """Closes files; a copy of the tree, which has the numbers, has none to close."""

    def __init__(self, *files: Records) -> None:
        self._files = files

    def __call__(self) -> None:
        for file in self._files:
            file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Close, ()


class _Columns(BackendEntrypoint):
    """Makes a dataset of columns; `xarray.open_dataset` adds that what is read once stays in memory."""

    open_dataset_parameters = ("filename_or_obj", "drop_variables")

    def open_dataset(self, filename_or_obj: Any, *, drop_variables: Any = None) -> xarray.Dataset:
        """See `BackendEntrypoint`."""
        columns, labels = filename_or_obj
        variables, coordinates = {}, {}
        for name, column in columns.items():
            data = indexing.LazilyIndexedArray(_Lazy(column))
            variables[name] = xarray.Variable(column.dims, data, {"units": column.units})
            lead, *others = column.dims
            coordinates[lead] = (lead, np.arange(len(column)), {"units": "1"})
            coordinates |= {dim: (dim, labels[dim], {"units": "1"}) for dim in others}
        return xarray.Dataset(variables, coordinates)


class _Lazy(BackendArray):
    """Reads what is asked for of a column."""

    def __init__(self, column: Column) -> None:
        self._column, self.shape, self.dtype = column, column.shape, column.place.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, here or in another process, has the numbers instead."""
        return indexing.NumpyIndexingAdapter, (self._column[:],)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> NDArray[Any]:
        found: NDArray[Any] = indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._column.__getitem__
        )
        return found
