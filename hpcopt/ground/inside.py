"""What an HDF5 file holds itself: nothing is read from elsewhere, and nothing is larger than it can be.

A file may have been made by others, or damaged: with links to other files, datasets whose numbers are
elsewhere, and shapes that nobody has the memory for. Objects of h5py are looked at here; who opens files
imports it.
"""

from __future__ import annotations

import zipfile
from math import prod
from typing import Any

NUMBERS = "biuf"
RATIO = 1100
"""gzip, the best of the usual filters, makes numbers at most so much smaller"""
SMALL_BYTES = 1 << 16
"""which a header may have in itself"""
HARD_LINK = 0
FAULTS = (
    *(OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError),
    *(ArithmeticError, MemoryError, AssertionError, zipfile.BadZipFile),
)
"""what reading a file raises that is not what it should be"""


def dataset(file: Any, name: str, kinds: str = NUMBERS) -> Any:
    """A dataset of a file or group.

    Args:
        file: where to look.
        name: its path from there.
        kinds: NumPy's letters for what may be in it.

    Raises:
        KeyError: there is none.
        ValueError: it is no such dataset, not in the file itself, or says that it is larger than it can be.
    """
    found = file
    for part in filter(None, name.split("/")):
        # not `part in found`, which would look at where a link leads
        if found.id.links.get_info(part.encode()).type != HARD_LINK:
            raise ValueError(f"/{name} is a link to somewhere else")
        found = found[part]
    check(found, kinds)
    return found


def check(found: Any, kinds: str = NUMBERS) -> None:
    """Raises `ValueError` as `dataset` does; of what was reached without a link."""
    name = found.name
    if getattr(found, "shape", None) is None:
        raise ValueError(f"{name} is not a dataset of numbers")
    if found.is_virtual or found.external:
        raise ValueError(f"the numbers of {name} are in another file")
    if found.dtype.kind not in kinds:
        raise ValueError(f"{name} has {found.dtype} where numbers belong")
    wanted, there = _bytes(found, found.shape), _room(found)
    if there < wanted:
        raise ValueError(f"{name} says that it has {wanted} bytes, for which the file has no room")


def _room(found: Any) -> int:
    """How many bytes of numbers a dataset may have, by what the file has of it."""
    size, stored = found.file.id.get_filesize(), found.id.get_storage_size()
    if found.chunks:
        filters = found.id.get_create_plist().get_nfilters()
        room = min(size, stored) * (RATIO if filters else 1)
        return room if _bytes(found, found.chunks) <= max(room, SMALL_BYTES) or not stored else 0
    offset = found.id.get_offset()
    return max(0, size - offset) if offset is not None else min(stored, SMALL_BYTES)


def _bytes(found: Any, shape: tuple[int, ...]) -> int:
    return int(prod(shape)) * int(found.dtype.itemsize)
