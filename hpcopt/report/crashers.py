"""Files at which HDF5 crashes, or never comes back, as it does at some that are damaged."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from hpcopt.report.load import load
from hpcopt.storage.records import Records

RUN, SCALING = "run.h5", "scaling.h5"
PATIENCE = 30.0
"""seconds that HDF5 may need for the structure of one file"""


def crashers(places: Sequence[Path]) -> set[Path]:
    """Those at which another process ends or hangs, in which they are all opened before.

    Args:
        places: directories of runs, or files.
    """
    found, left, context = set(), list(places), get_context("fork")
    while left:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_open, args=(left, there), daemon=True)
        process.start()
        there.close()
        done = 0
        with suppress(EOFError):
            while done < len(left) and here.poll(PATIENCE):
                here.recv_bytes()
                done += 1
        process.kill()
        process.join()
        found |= set(left[done : done + 1])
        left = left[done + 1 :]
    return found


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
        Records(place / RUN if place.is_dir() else place).close()
