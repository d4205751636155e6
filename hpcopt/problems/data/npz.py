"""The arrays of an .npz file, streamed: numpy.load would hold each of them in memory whole."""

from __future__ import annotations

import zipfile
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from numpy.lib import format as npy

from hpcopt.errors import UserError
from hpcopt.problems.data.columns import Column, damage_is_user_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def npz_names(path: Path) -> list[str]:
    """The names of the arrays. Raises `UserError` where the file is absent or no whole zip file."""
    with damage_is_user_error(str(path)), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


@contextmanager
def open_npz(path: Path, name: str) -> Iterator[Column]:
    """The array ``name`` of an .npz file.

    Raises:
        UserError: the file is damaged, or the array holds Python objects or lies in Fortran order.
    """
    with damage_is_user_error(str(path)):
        archive = zipfile.ZipFile(path)
    with archive:
        with damage_is_user_error(str(path)):
            stream = archive.open(f"{name}.npy")
            promised = archive.getinfo(f"{name}.npy").file_size
        with stream:
            where = f"{path}: {name}"
            with damage_is_user_error(where):
                shape, fortran, dtype = _header(stream, where)
                column = Column(where, shape, dtype, stream)
                if stream.tell() + column.nbytes != promised:
                    raise EOFError(f"{promised} bytes for an array of {column.nbytes}")
            if fortran and len(shape) > 1:
                raise UserError(
                    f"{where}: the array lies in Fortran order, whose rows are not in one piece: "
                    "save it again as numpy.ascontiguousarray(x)"
                )
            yield column


def _header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, Fortran order, dtype); nothing is unpickled."""
    version = npy.read_magic(stream)
    if version not in HEADERS:
        raise UserError(f"{where}: .npy version {version} is not one of plain numbers")
    shape, fortran, dtype = HEADERS[version](stream)
    if dtype.hasobject:
        raise UserError(f"{where}: holds Python objects, which are not read (they could run code)")
    return shape, fortran, dtype
