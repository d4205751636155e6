"""Files at which HDF5 crashes, or never comes back, as it does at some that are damaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from hpcopt.report.load import load
from hpcopt.storage.file_like import Opened
from hpcopt.storage.structure import Structure

RUN, SCALING = "run.h5", "scaling.h5"
PATIENCE = 30.0
"""seconds that HDF5 may need for the structure of one file"""


class Crashes:
    """What stands for a file at which HDF5 crashes or hangs."""


def tried(places: Sequence[Path]) -> Iterator[tuple[Path, Structure | Crashes | None]]:
    """Each place, and what another process that goes ahead and opens them all found there.

    Args:
        places: directories of runs, or files.

    Yields:
        The structure of a run.h5; None of what is none, or has another fault, which will be found again; or
        that the process did not come back.
    """
    left, context = list(places), get_context("fork")
    while left:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_open, args=(left, there), daemon=True)
        process.start()
        there.close()
        try:
            while left and not isinstance(found := _found(here), Crashes):
                yield left.pop(0), found
        finally:
            process.kill()
            process.join()
            here.close()
        if left:
            yield left.pop(0), Crashes()


def _found(here: Connection) -> Structure | Crashes | None:
    """What was found in the next one, before the process has ended or patience has."""
    with suppress(EOFError):
        if here.poll(PATIENCE):
            found: Structure | None = here.recv()
            return found
    return Crashes()


def _open(places: Sequence[Path], done: Connection) -> None:
    for place in places:
        found = None
        with suppress(Exception):
            found = _structure(place)
        done.send(found)


def _structure(place: Path) -> Structure | None:
    if place.name == SCALING:
        load(place)
        return None
    path = place / RUN if place.is_dir() else place
    with Opened(path) as file:
        return Structure.read(file, path)
