"""Files at which HDF5 crashes, or never comes back, as it does at some that are damaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from hpcopt.report.load import load
from hpcopt.storage.records import Records

RUN, SCALING = "run.h5", "scaling.h5"
PATIENCE = 30.0
"""seconds that HDF5 may need for the structure of one file"""


def tried(places: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """Each place, and whether another process crashes or hangs at it, which goes ahead and opens them all.

    Args:
        places: directories of runs, or files.
    """
    left, context = list(places), get_context("fork")
    while left:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_open, args=(left, there), daemon=True)
        process.start()
        there.close()
        try:
            while left and _done(here):
                yield left.pop(0), False
        finally:
            process.kill()
            process.join()
            here.close()
        if left:
            yield left.pop(0), True


def _done(here: Connection) -> bool:
    """Whether the next one is done, before the process has ended or patience has."""
    with suppress(EOFError):
        if here.poll(PATIENCE):
            here.recv_bytes()
            return True
    return False


def _open(places: Sequence[Path], done: Connection) -> None:
    """Says so after each; whatever else is wrong with a file is found again."""
    for place in places:
        with suppress(Exception):
            _structure(place)
        done.send_bytes(b"")


def _structure(place: Path) -> None:
    if place.name == SCALING:
        load(place)
    else:
        Records(place / RUN if place.is_dir() else place, at_once=False).close()
