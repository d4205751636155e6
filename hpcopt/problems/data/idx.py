"""The idx format of MNIST and its relatives, plain or gzipped.

Two zero bytes, one byte for the type, one for the rank r, r sizes as big-endian uint32, then the numbers
in C order, big-endian.
"""

from __future__ import annotations

import gzip
import struct
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from hpcopt.errors import UserError
from hpcopt.problems.data.columns import Column, damage_is_user_error, fill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
DEFLATE_LIMIT = 1100  # deflate never shrinks by more than 1032


@contextmanager
def open_idx(path: Path) -> Iterator[Column]:
    """The array in an idx file; a name that ends in .gz is decompressed on the way.

    Raises:
        UserError: the file is absent, cut short, or not idx.
    """
    with damage_is_user_error(str(path)):
        stream: IO[bytes] = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[assignment]  # noqa: SIM115
    with stream:
        with damage_is_user_error(str(path)):
            column = _header(path, stream)
            size = path.stat().st_size
        if column.nbytes > size * (DEFLATE_LIMIT if path.suffix == ".gz" else 1):
            raise UserError(
                f"{path}: the file is damaged or cut short (its header promises {column.nbytes} bytes)"
            )
        yield column


def load_idx(path: Path) -> NDArray[Any]:
    """The whole array in an idx file, native byte order; raises as `open_idx`."""
    with open_idx(path) as column:
        return column.load()


def _header(path: Path, stream: IO[bytes]) -> Column:
    zero, kind, rank = struct.unpack(">HBB", _take(stream, 4))
    if zero != 0 or kind not in TYPES or rank == 0:
        raise UserError(f"{path}: not an idx file (it begins {zero:04x} {kind:02x} {rank:02x})")
    shape = struct.unpack(f">{rank}I", _take(stream, 4 * rank))
    if 0 in shape:
        raise UserError(f"{path}: holds no numbers (shape {shape})")
    return Column(str(path), shape, np.dtype(TYPES[kind]), stream)


def _take(stream: IO[bytes], count: int) -> bytes:
    raw = bytearray(count)
    fill(stream, memoryview(raw))
    return bytes(raw)
