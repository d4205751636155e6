"""Who is told of a failure before it ends the process: a sweep, which goes on with the rest later. No MPI."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Heir = Callable[[int, str], object]

# what ends the process may come from any place and any thread of it
_heirs: list[tuple[str, Heir]] = []


@contextmanager
def heard(place: str, heir: Heir) -> Iterator[None]:
    """Within, the process does one thing of several, and a failure of it is not that of all.

    Args:
        place: which, for messages: "case lr=0.1".
        heir: gets the exit code and the message where the process cannot go on.
    """
    _heirs.append((place, heir))
    try:
        yield
    finally:
        _heirs.pop()


def place() -> str:
    """What this process is at, as the end of a sentence; empty where it does one thing only."""
    return f" in {_heirs[-1][0]}" if _heirs else ""


def speak(code: int, message: str) -> None:
    """Tells who has to know; nothing that goes wrong there may hold up the end."""
    for _, heir in _heirs:
        with suppress(Exception):
            heir(code, message)
