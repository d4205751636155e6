"""Files that are either complete or not there. Local; no MPI."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcopt.errors import UserError

PARTIAL = ".partial"


def home(path: str | os.PathLike[str]) -> Path:
    """A path from the user, who may begin it with ~; a shell leaves that as it is behind a ``=``."""
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside ``path``; renames it on success, removes it on failure.

    The file is on the disk before it has its name, and the name before this returns.

    Raises:
        UserError: the file system refuses (full, not writable).
    """
    partial = partial_name(path)
    try:
        with refusals(path):
            discard(partial)  # what a killed job left, or a link that would be followed
            yield partial
            commit(partial, path)
    except BaseException:
        discard(partial)
        raise


def partial_name(path: Path) -> Path:
    """Where a file is written until it is complete."""
    return path.with_name(path.name + PARTIAL)


def commit(partial: Path, path: Path) -> None:
    """Forces a complete file to the disk and gives it its name; raises as `sync`."""
    sync(partial)
    with refusals(path):
        os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Forces a file or a directory to the disk.

    Raises:
        UserError: the file system refuses: a network's tells only now that it is full.
    """
    with refusals(path):
        force(path)


def force(path: Path) -> None:
    """`sync` that leaves an `OSError` as it is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turns what the system says against a file into a `UserError` that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def drop_cache(path: Path) -> None:
    """Asks the system to forget its copy of a synced file, so that the next read comes from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def reserve(path: Path) -> None:
    """Takes the disk blocks for a file's whole length, so that writing it cannot run out of space.

    Raises:
        OSError: there is no room (ENOSPC), or a quota says so.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        size = os.fstat(descriptor).st_size
        if size:
            os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


def write_at(descriptor: int, data: Any, offset: int) -> None:
    """Writes all of contiguous bytes at an offset; a system may take them in pieces.

    Raises:
        OSError: it refuses.
    """
    left = memoryview(data)
    while left:
        done = os.pwrite(descriptor, left, offset)
        left, offset = left[done:], offset + done


def hold(path: Path, size: int) -> None:
    """Makes a file of ``size`` bytes that means nothing but has its disk blocks.

    Raises:
        OSError: there is no room (ENOSPC), or a quota says so.
    """
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def discard(path: Path) -> None:
    """Removes a file if it is there."""
    with contextlib.suppress(OSError):
        path.unlink()
