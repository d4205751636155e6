"""Ends a job that has stopped making progress, and says where every rank stood."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from pathlib import Path

from hpcopt.control import last_words
from hpcopt.control.pulse import Pulse, Sign
from hpcopt.ground.terminal import descriptor, raw

GRACE_SECONDS = 2.0
MAX_SECONDS = 1e9  # what the system's timers take


class Watchdog:
    """Watches this rank's heartbeat from a thread; works while the main thread waits inside MPI.

    When no `beat` came for ``seconds``, it prints the stacks of all threads to stderr, gives the other ranks
    `GRACE_SECONDS` to print theirs, and ends the process, upon which the launcher ends the job. The first
    one to do so names the ranks that hold up the others, where `listen` was called. Should the interpreter
    itself be stuck, a timer outside of Python ends the process ten seconds later.

    Args:
        name: who this is, for the message: "rank 2 of 4 on node7".
        seconds: patience [s].
    """

    def __init__(self, name: str, seconds: float) -> None:
        self._name, self._seconds = name, seconds
        self._where, self._beats = "the start", 0
        self._pulse: Pulse | None = None
        self._last = self._armed = time.monotonic()
        self._done = threading.Event()
        self._arm()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def listen(self, folder: Path, rank: int, ranks: int) -> None:
        """From here on ranks leave signs of life in a folder; see `hpcopt.control.pulse`. Local."""
        self._pulse = Pulse(folder, rank, ranks, self._seconds, self._sign)

    def beat(self, where: str) -> None:
        """Says that there is progress, and what comes next. Local, cheap; as often on every rank."""
        self._where = where
        self._beats += 1
        self._last = time.monotonic()
        if self._last - self._armed > min(1.0, self._seconds / 4):
            self._arm()

    def stop(self) -> None:
        """Ends the watch."""
        if self._pulse is not None:
            self._pulse.stop()
        self._done.set()
        faulthandler.cancel_dump_traceback_later()
        self._thread.join()

    def _sign(self) -> Sign:
        return Sign(self._beats, self._name, self._where)

    def _arm(self) -> None:
        self._armed = time.monotonic()
        patience = min(self._seconds + 10, MAX_SECONDS)
        faulthandler.dump_traceback_later(patience, exit=True, file=descriptor())

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._seconds / 10)):
            if time.monotonic() - self._last > self._seconds:
                self._bark()

    def _bark(self) -> None:
        stalled = f"{self._name}: no progress for {self._seconds:g} s (run.stall_seconds) in {self._where}"
        raw(f"hpcopt: {stalled}{last_words.place()}; the stacks of its threads follow, then the job ends\n")
        last_words.speak(1, stalled)
        faulthandler.dump_traceback(file=descriptor(), all_threads=True)
        time.sleep(GRACE_SECONDS)
        for line in self._pulse.verdict() if self._pulse is not None else ():
            raw(f"hpcopt: {line}\n")
        os._exit(1)
