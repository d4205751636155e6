"""Objects that HDF5 takes for files."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any


class Opened(io.RawIOBase):
    """A file opened once, to read its structure through HDF5 and its numbers without.

    HDF5 would open it by name a second time, when a running job may have put another one there; and it takes
    both openings of one file for the same, and gives the second what it has buffered for the first, before a
    running job wrote on.

    Args:
        path: the file; raises OSError.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor, self._at = os.open(path, os.O_RDONLY), 0

    @property
    def identity(self) -> tuple[int, int]:
        """What tells the file from another one that has its name later."""
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino

    def read_at(self, buffer: Any, offset: int) -> int:
        """Reads contiguous bytes at an offset, however often the system has to be asked; gives how many.

        Raises:
            OSError: it refuses.
            ValueError: the file was closed.
        """
        if self.closed:
            raise ValueError("the file is closed, and this was not read before")
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and (more := os.preadv(self._descriptor, [view[done:]], offset + done)):
            done += more
        return done

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """See `io.RawIOBase`."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._descriptor).st_size}
        self._at = start[whence] + offset
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """See `io.RawIOBase`."""
        done = self.read_at(buffer, self._at)
        self._at += done
        return done

    def __reduce__(self) -> Any:
        """An open file cannot be copied."""
        raise TypeError("an open file cannot be copied")

    def close(self) -> None:
        """See `io.RawIOBase`."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class Sparse(io.RawIOBase):
    """A file in memory that keeps only those of its pages that were written to.

    Attributes:
        size: its length [B].
    """

    PAGE = 1 << 14

    def __init__(self) -> None:
        self.size, self._at = 0, 0
        self._pages: dict[int, bytearray] = {}

    def pages(self) -> list[tuple[int, memoryview]]:
        """Offset and content of every page that was written to."""
        found = sorted(self._pages.items())
        return [(at, memoryview(page)[: self.size - at]) for at, page in found if at < self.size]

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """See `io.RawIOBase`."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def truncate(self, size: int | None = None, /) -> int:
        """See `io.RawIOBase`."""
        self.size = self._at if size is None else size
        return self.size

    def readinto(self, buffer: Any, /) -> int:
        """See `io.RawIOBase`; what was never written is zero."""
        view = memoryview(buffer).cast("B")[: max(0, self.size - self._at)]
        for page, inside, part in self._parts(view):
            part[:] = self._pages.get(page, bytes(self.PAGE))[inside : inside + len(part)]
        self._at += len(view)
        return len(view)

    def write(self, data: Any, /) -> int:
        """See `io.RawIOBase`."""
        view = memoryview(data).cast("B")
        for page, inside, part in self._parts(view):
            self._pages.setdefault(page, bytearray(self.PAGE))[inside : inside + len(part)] = part
        self._at += len(view)
        self.size = max(self.size, self._at)
        return len(view)

    def _parts(self, view: memoryview) -> list[tuple[int, int, memoryview]]:
        """Cuts what is at the current position at the borders of pages: page, offset in it, piece."""
        parts, done = [], 0
        while done < len(view):
            inside = (self._at + done) % self.PAGE
            part = view[done : done + self.PAGE - inside]
            parts.append((self._at + done - inside, inside, part))
            done += len(part)
        return parts
