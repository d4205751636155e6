"""What was appended to a trace.h5 since it was last written, in a file beside it that only grows.

An entry is its length and its checksum, then an .npz of the rows and of the round before which the run was
at rest. What a kill or a full disk has left half-written comes last and does not count.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcopt.ground import files

Rows = NDArray[np.int64]
Entry = tuple[int, Mapping[str, Rows]]

HEAD = struct.Struct("<QI")
"""bytes that follow, their CRC-32"""
ROUND, ROWS = "round", "rows/"
"""names in an .npz; the second one before those of a method"""


def beside(path: Path) -> Path:
    """The journal of a trace."""
    return path.with_name(path.name + ".journal")


def add(path: Path, entries: Iterable[Entry]) -> None:
    """Appends entries, all of them or none; they are on the disk afterwards.

    Raises:
        UserError: the file system refuses.
    """
    packed = b"".join(_packed(*entry) for entry in entries)
    with files.refusals(path), path.open("ab", buffering=0) as stream:
        before = stream.tell()
        try:
            files.write_at(stream.fileno(), packed, before)
            os.fsync(stream.fileno())
        except OSError:
            stream.truncate(before)
            raise


def entries(path: Path) -> Iterator[Entry]:
    """The whole ones, in order; none where there is no such file."""
    if not path.exists():
        return
    with path.open("rb") as stream:
        while len(head := stream.read(HEAD.size)) == HEAD.size:
            length, checksum = HEAD.unpack(head)
            packed = stream.read(min(length, os.fstat(stream.fileno()).st_size))
            if len(packed) != length or zlib.crc32(packed) != checksum:
                return
            with np.load(io.BytesIO(packed)) as arrays:
                names = (name for name in arrays if name != ROUND)
                yield int(arrays[ROUND]), {name.removeprefix(ROWS): arrays[name] for name in names}


def _packed(round: int, rows: Mapping[str, Rows]) -> bytes:
    content = io.BytesIO()
    named = {ROWS + name: array for name, array in rows.items()} | {ROUND: np.array(round)}
    np.savez_compressed(content, **named)
    packed = content.getvalue()
    return HEAD.pack(len(packed), zlib.crc32(packed)) + packed
