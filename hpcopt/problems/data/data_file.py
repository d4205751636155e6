"""The door to data files: opened read-only, checked to be ours; all that goes wrong names the file."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hpcopt.errors import UserError
from hpcopt.ground.inside import FAULTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import h5py

SCHEMA = "hpcopt-data"
DENSE, SPARSE = 1, 2
"""schema versions: files of dense rows, and of sparse ones"""


@contextmanager
def open_readonly(path: Path) -> Iterator[h5py.File]:
    """The file, checked to be ours; everything that goes wrong with it is a `UserError` that names it."""
    import h5py  # with a parallel HDF5, importing it starts MPI: not before it is needed

    if not os.path.isfile(path):  # unlike Path.is_file, it takes any name
        raise UserError(f"{path}: there is no such file")
    try:
        with h5py.File(path, "r", driver="sec2", locking=False) as file:
            if file.attrs.get("schema") != SCHEMA:
                raise UserError(f"{path}: not a data file of hpcopt; make one with `hpcopt data import`")
            if int(file.attrs.get("schema_version", 0)) not in (DENSE, SPARSE):
                raise UserError(
                    f"{path}: schema version {file.attrs.get('schema_version')}, not {DENSE} or {SPARSE}"
                )
            yield file
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read (permission denied)") from error
    # IndexError stays, for it is the caller's
    except FAULTS as error:
        if isinstance(error, IndexError):
            raise
        raise UserError(f"{path}: not a readable data file: damaged or cut short? ({error})") from error
