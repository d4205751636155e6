"""Arrays that are read once, front to back, in blocks: what a file larger than memory allows."""

from __future__ import annotations

import gzip
import lzma
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from hpcopt.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

BLOCK_BYTES = 2 << 20


@dataclass
class Column:
    """An array (rows, …) in a stream whose header has been read.

    Attributes:
        name: the file (and member), for messages.
        shape: of the whole array, rows first.
        dtype: as stored, of any byte order.
        stream: the bytes of the array, C order, and nothing after them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: IO[bytes]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def block_rows(self) -> int:
        """How many rows a block holds."""
        return max(1, BLOCK_BYTES * self.shape[0] // max(1, self.nbytes))

    def blocks(self, rows: int | None = None) -> Iterator[NDArray[Any]]:
        """The array in blocks of ``rows`` rows (about 2 MiB if None) in native byte order; only once.

        Raises:
            UserError: the file is damaged, ends early, or goes on after the array.
        """
        rows = rows or self.block_rows
        for start in range(0, self.shape[0], rows):
            yield self._read((min(rows, self.shape[0] - start), *self.shape[1:]))
        with damage_is_user_error(self.name):
            # Reading on makes gzip and zip compare their checksums.
            if self.stream.read(1):
                raise UserError(f"{self.name}: there is more data than its header says")

    def load(self) -> NDArray[Any]:
        """The whole array, in native byte order."""
        # Pages that are never written cost nothing, so a header that lies is found out by the end of file.
        out = np.empty(self.shape, self.dtype.newbyteorder("="))
        start = 0
        for block in self.blocks():
            out[start : start + len(block)] = block
            start += len(block)
        return out

    def _read(self, shape: tuple[int, ...]) -> NDArray[Any]:
        raw = np.empty(prod(shape) * self.dtype.itemsize, np.uint8)
        with damage_is_user_error(self.name):
            fill(self.stream, raw.data)
        return raw.view(self.dtype).reshape(shape).astype(self.dtype.newbyteorder("="), copy=False)


def fill(stream: IO[bytes], buffer: memoryview) -> None:
    """Reads until the buffer is full. Raises `EOFError` where the stream ends before."""
    done = 0
    while done < len(buffer):
        piece = stream.read(len(buffer) - done)
        if not piece:
            raise EOFError(f"it ends {len(buffer) - done} bytes early")
        buffer[done : done + len(piece)] = piece
        done += len(piece)


@contextmanager
def damage_is_user_error(name: str) -> Iterator[None]:
    """Turns what reading a damaged or absent file raises into one `UserError` that names the file."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile, ValueError) as error:
        raise UserError(f"{name}: the file is damaged or cut short ({error})") from error
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from error
    except (NotImplementedError, RuntimeError) as error:  # an unknown or encrypted kind of zip
        raise UserError(f"{name}: cannot be read ({error})") from error
