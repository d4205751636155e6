"""Signals that ask a job to stop: caught from the first moment on, acted upon when the loop runs. No MPI."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hpcopt.ground.terminal import raw

DEFAULT = "USR1"
"""the signal that asks to stop where no other one is chosen, beside TERM and INT, which always do"""

# signals belong to the process, and so does what came of them
_previous: dict[signal.Signals, Any] = {}
_received: list[int] = []
_others: list[Callable[[], bool]] = []


def catch(name: str = DEFAULT) -> bool:
    """From here on a signal, TERM and INT (Ctrl-C) are remembered, and end nothing; but for a second INT.

    Args:
        name: of the signal, without SIG; where another one was caught before, that is given back.

    Returns:
        Whether that is new; who began it calls `release`, or leaves it until the process ends.
    """
    # Python gives signals to the main thread alone; a run in another one goes without
    if threading.current_thread() is not threading.main_thread():
        return False
    new, stopping = not _previous, {signal.Signals[f"SIG{name}"], signal.SIGTERM, signal.SIGINT}
    for number in stopping - _previous.keys():
        _previous[number] = signal.signal(number, _remember)
    for number in _previous.keys() - stopping:
        handler = _previous.pop(number)
        if signal.getsignal(number) is _remember:  # and not the user's code, which may want it itself
            signal.signal(number, handler)
    return new


def received() -> bool:
    """Whether one came since `catch`, here or where somebody else listens."""
    return bool(_received) or any(other() for other in _others)


@contextmanager
def heard(elsewhere: Callable[[], bool]) -> Iterator[None]:
    """Within, a signal that came to another process counts, too; asked from any thread, and often."""
    _others.append(elsewhere)
    try:
        yield
    finally:
        _others.remove(elsewhere)


def release() -> None:
    """Gives the signals back to whom they belonged, and forgets what came."""
    for number, handler in _previous.items():
        signal.signal(number, handler)
    _previous.clear()
    _received.clear()


def ignore() -> None:
    """From here on those that were caught change nothing: a process that has its exit code keeps it.

    Python gives its own handlers back while it ends: a process that takes seconds for that, on a busy node,
    would die of a signal after its work is done.
    """
    for number in _previous:
        signal.signal(number, signal.SIG_IGN)


def _remember(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        if number in _received:  # somebody at a terminal, who means it
            signal.default_int_handler(number, frame)
        raw("hpcopt: stopping with a checkpoint, after this round; Ctrl-C again: at once, without\n")
    _received.append(number)
