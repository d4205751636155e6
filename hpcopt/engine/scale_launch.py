"""One launch of a scaling study: a launcher with its ranks, as a process that is waited for."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from hpcopt.config.scale import RANKS
from hpcopt.control import signals
from hpcopt.errors import UserError

TOLD = 2000
"""letters of what a launch printed last that a failure keeps"""
ENDING = 60.0
"""seconds that a launch has to end when it was told to"""


def start(launcher: str, ranks: int, config: Path, out: Path, log: Path) -> int:
    """Runs a config to its end; gives the exit code.

    Args:
        launcher: what starts the ranks, see `hpcopt.config.scale.ScaleTable`.
        ranks: how many.
        config, out: what runs, and in which directory.
        log: what it prints.

    Raises:
        UserError: there is no such launcher.
    """
    words = [word.replace(RANKS, str(ranks)) for word in shlex.split(launcher)]
    command = [*words, _hpcopt(), "run", str(config), "--out", str(out)]
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise UserError(
                f"{words[0]}: cannot be started ({error.strerror}); --launcher names another one"
            ) from None
        return _wait(process)


def last_words(log: Path) -> str:
    """Our own error in what a launch printed, or its end."""
    printed = log.read_text("utf-8", errors="replace")
    _, found, message = printed.rpartition("hpcopt: error: ")
    return message.strip()[:TOLD] if found else printed.strip()[-TOLD:] or "it printed nothing"


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Until it has ended; a signal that is for us is its ranks' too, and they end by themselves."""
    handed_on = False
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(0.5)
            if signals.received() and not handed_on:
                process.send_signal(signal.SIGUSR1)  # see `hpcopt.config.scale.plan`
                handed_on = True
    finally:
        if process.poll() is None:  # an interrupt from the keyboard, or a bug
            process.terminate()
            try:
                process.wait(ENDING)
            except subprocess.TimeoutExpired:
                process.kill()


def _hpcopt() -> str:
    """The command of this installation."""
    beside = Path(sys.executable).parent / "hpcopt"
    return str(beside) if os.access(beside, os.X_OK) else "hpcopt"
