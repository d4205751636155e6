"""The format of a checkpoint file, and reading one. No MPI, no torch.

    /state/NAME     one dataset per array, rows along the first axis
    /digests/NAME   (extents, 3) int64: first row, last row + 1, CRC-32C of their bytes
    /meta           a JSON text as bytes, with its CRC-32C as attribute ``crc32c``

The extents of an array tile its rows; nothing depends on how many ranks wrote the file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from hpcopt.errors import UserError
from hpcopt.ground import inside

SCHEMA = "hpcopt-checkpoint"
SCHEMA_VERSION = 2
"""2: totals count the verbs of ports that have several, and phases; files are the same"""
EXTENT_BYTES = 16 << 20


NAME = re.compile(r"round-(\d{8,})\.h5")


class Damaged(Exception):
    """A checkpoint file does not hold what was written; the message says where."""


@dataclass(frozen=True)
class Extent:
    """Rows [start, stop) of one array, with the digest of their bytes."""

    name: str
    start: int
    stop: int
    digest: int


def name_of(round: int) -> str:
    """The file's name."""
    return f"round-{round:08d}.h5"


def listed(directory: Path) -> list[Path]:
    """The checkpoints in a directory, by their rounds; none if there is no directory."""
    if not os.path.isdir(directory):
        return []
    try:
        found = [(NAME.fullmatch(path.name), path) for path in directory.iterdir()]
    except OSError as error:
        raise UserError(f"{directory}: cannot be read ({error.strerror})") from None
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def digests(rows: NDArray[np.generic], start: int) -> NDArray[np.int64]:
    """Extents of contiguous rows that begin at row ``start`` of their array, (extents, 3) int64."""
    step = max(1, EXTENT_BYTES // max(1, rows[:1].nbytes))
    table = [
        (start + at, start + min(at + step, len(rows)), digest(rows[at : at + step]))
        for at in range(0, len(rows), step)
    ]
    return np.array(table, dtype=np.int64).reshape(-1, 3)


def digest(rows: NDArray[np.generic]) -> int:
    """CRC-32C of an array's bytes."""
    return int(crc32c(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data))


def write_summary(path: Path, tables: dict[str, NDArray[np.int64]], meta: dict[str, Any]) -> None:
    """Adds digests and meta to a file that already holds /state. Local."""
    text = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    with h5py.File(path, "r+") as file:
        for name, table in tables.items():
            file.create_dataset(f"digests/{name}", data=table)
        file.create_dataset("meta", data=text).attrs["crc32c"] = digest(text)


def read_meta(path: Path) -> dict[str, Any]:
    """The checkpoint's meta data; ``schema_version`` in it is that of the file.

    Raises:
        Damaged: it is not readable as it was written.
    """
    with _reading(path) as file:
        data = inside.dataset(file, "meta")
        text = data[...]
        if digest(text) != int(data.attrs["crc32c"]):
            raise Damaged("/meta does not match its digest")
        meta: dict[str, Any] = json.loads(text.tobytes())
        schema, version = meta.get("schema"), meta.get("schema_version")
    if schema != SCHEMA or version not in range(1, SCHEMA_VERSION + 1):
        raise Damaged(f"schema {schema} version {version} is not known here")
    return meta


def extents(path: Path, meta: dict[str, Any]) -> list[Extent]:
    """Every extent of every array that ``meta`` lists.

    Raises:
        Damaged: an array is missing, has another shape, or is not tiled by its extents.
    """
    found: list[Extent] = []
    with _reading(path) as file:
        for name, shape in meta["arrays"].items():
            dataset = inside.dataset(file, f"state/{name}")
            table = inside.dataset(file, f"digests/{name}")[...]
            table = table[np.argsort(table[:, 0], kind="stable")]
            edges = np.concatenate([[0], table[:, 1]])
            whole = edges[-1] == shape[0] and np.array_equal(edges[:-1], table[:, 0])
            if list(dataset.shape) != shape or not whole:
                raise Damaged(f"/state/{name} is not complete")
            found += [Extent(name, int(a), int(b), int(crc)) for a, b, crc in table]
    return found


def check(path: Path, wanted: list[Extent]) -> None:
    """Reads extents back and compares their digests.

    Raises:
        Damaged: at the first that differs.
    """
    with _reading(path) as file:
        for extent in wanted:
            rows = inside.dataset(file, f"state/{extent.name}")[extent.start : extent.stop]
            if digest(rows) != extent.digest:
                raise Damaged(f"/state/{extent.name}[{extent.start}:{extent.stop}] does not match its digest")


def read_rows(path: Path, name: str, start: int, stop: int) -> NDArray[np.generic]:
    """Rows [start, stop) of one array."""
    with _reading(path) as file:
        rows: NDArray[np.generic] = inside.dataset(file, f"state/{name}")[start:stop]
        return rows


@contextmanager
def sound() -> Iterator[None]:
    """Whatever is missing in what a checkpoint holds, or is something else, is damage."""
    try:
        yield
    except inside.FAULTS as error:
        raise Damaged(f"not readable ({_first_line(error)})") from None


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    """An open checkpoint; whatever goes wrong inside is damage."""
    with sound(), h5py.File(path, "r") as file:
        yield file


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
