"""Signs of life: each rank keeps a small file beside the run young, so that others can tell who has stopped.

A rank that was stopped, or whose node is gone, answers no question, by MPI or otherwise. So each one says
while it lives where it is, from a thread that waits for nothing that MPI does. How old a file is is told by
the file system's clock, which all hosts share.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MISSED = 3
"""signs that a living rank may miss, on a busy node"""
SECONDS = 30.0
"""the longest time between two"""
SHOWN = 8
"""ranks that are named, of many"""


class Sign(NamedTuple):
    """What a rank says of itself.

    Attributes:
        beats: how often it has made progress; all ranks make the same.
        name: "rank 2 of 4 on node7".
        where: what it is at.
    """

    beats: int
    name: str
    where: str


class Pulse:
    """This rank's file, and those of the others. Local.

    Args:
        folder: this job's alone; all ranks see it.
        rank, ranks: who this is, of how many.
        patience: seconds without progress after which the ranks are looked at; ten signs come in that time.
        say: what to write.
    """

    def __init__(self, folder: Path, rank: int, ranks: int, patience: float, say: Callable[[], Sign]) -> None:
        self._folder, self._rank, self._ranks, self._say = folder, rank, ranks, say
        self._seconds = min(patience / 10, SECONDS)
        self._done = threading.Event()
        self._give()
        self._thread = threading.Thread(target=self._live, name="pulse", daemon=True)
        self._thread.start()

    def verdict(self) -> list[str]:
        """Who holds up the job, a line for each, as far as can be told; only one rank of the job is told."""
        with suppress(OSError):
            os.close(os.open(self._folder / "told", os.O_CREAT | os.O_EXCL))
            return verdict(self._signs(), MISSED * self._seconds)
        return []

    def stop(self) -> None:
        """Takes the file away, and the folder with the last one."""
        self._done.set()
        self._thread.join()
        with suppress(OSError):
            self._file(self._rank).unlink()
            self._folder.rmdir()

    def _live(self) -> None:
        while not self._done.wait(self._seconds):
            self._give()

    def _give(self) -> None:
        line = json.dumps(self._say()).encode() + b"\n"
        with suppress(OSError):  # without files nobody is named, and that is all
            descriptor = os.open(self._file(self._rank), os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(descriptor, line, 0)  # at once; what is left of a longer one is another line
            finally:
                os.close(descriptor)

    def _signs(self) -> list[tuple[float, Sign]]:
        """How old the ranks' signs are [s]; of ranks that have none nothing can be told."""
        self._give()
        now, found = self._file(self._rank).stat().st_mtime, []
        for rank in range(self._ranks):
            with suppress(OSError, ValueError), self._file(rank).open(encoding="utf-8") as file:
                # of the open file: over a network a name may be answered from memory
                age = now - os.fstat(file.fileno()).st_mtime
                found.append((age, Sign(*json.loads(file.readline()))))
        return found

    def _file(self, rank: int) -> Path:
        return self._folder / str(rank)


def verdict(signs: list[tuple[float, Sign]], silence: float) -> list[str]:
    """The ranks that give no sign of life; if all do, those that are behind the others.

    >>> there, behind = Sign(7, "rank 0 of 2", "round 7"), Sign(5, "rank 1 of 2", "round 5")
    >>> verdict([(0.1, there), (0.2, behind)], 9.0)
    ['rank 1 of 2: behind the others, in round 5']
    >>> verdict([(0.1, there), (0.2, there)], 9.0)
    []
    """
    silent = [
        f"{sign.name}: no sign of life for {age:.1f} s, the last one from {sign.where}: it is stopped, or "
        "stuck outside of Python, or its node is lost"
        for age, sign in signs
        if age > silence
    ]
    steps = [sign.beats for _, sign in signs]
    behind = [
        f"{sign.name}: behind the others, in {sign.where}"
        for _, sign in signs
        if min(steps) == sign.beats < max(steps)
    ]
    lines = silent or behind
    return lines[:SHOWN] + [f"and {len(lines) - SHOWN} more"] * (len(lines) > SHOWN)
