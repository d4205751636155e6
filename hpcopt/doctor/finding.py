"""What a probe is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from typing import NamedTuple


class Grade(IntEnum):
    """How a probe went; from `FAILS` on the machine is not fit for a run."""

    OK = 0
    NOTE = 1
    WARNING = 2
    FAILS = 3
    HANGS = 4


class Where(Enum):
    """Who runs a probe."""

    FIRST = "rank 0 alone"
    EACH = "every rank by itself; the worst finding counts"
    TOGETHER = "all ranks, collectively, on a communicator of the probe's own"


@dataclass(frozen=True)
class Finding:
    """What a probe found.

    Attributes:
        grade: how it went.
        result: what the machine does.
        remedy: what the user can do about it; empty where there is nothing to do.
    """

    grade: Grade
    result: str
    remedy: str = ""


@dataclass(frozen=True)
class Probe:
    """One thing to try.

    Attributes:
        name: the first column of the table.
        run: takes nothing, or the communicator if ``where`` is `Where.TOGETHER`.
        remedy: what to do when it hangs, or when it raises.
        where: who runs it.
        seconds: patience [s].
    """

    name: str
    run: Callable[..., Finding]
    remedy: str
    where: Where = Where.EACH
    seconds: float = 20.0


class Row(NamedTuple):
    """A line of the table."""

    name: str
    finding: Finding


def ok(result: str) -> Finding:
    """It works."""
    return Finding(Grade.OK, result)


def note(result: str, remedy: str = "") -> Finding:
    """It is not there, and need not be."""
    return Finding(Grade.NOTE, result, remedy)


def warning(result: str, remedy: str) -> Finding:
    """Runs work, but something will disappoint."""
    return Finding(Grade.WARNING, result, remedy)


def fails(result: str, remedy: str) -> Finding:
    """Runs will not work."""
    return Finding(Grade.FAILS, result, remedy)


def worst(findings: Sequence[Finding | None], hosts: Sequence[str]) -> Finding:
    """One finding for all ranks that looked: the worst, saying where it was found if not everywhere."""
    looked = {rank: finding for rank, finding in enumerate(findings) if finding is not None}
    rank = max(looked, key=lambda rank: (looked[rank].grade, -rank))
    found = looked[rank]
    others = sum(finding.grade == found.grade for finding in looked.values()) - 1
    if others + 1 == len(looked):
        return found
    place = f"rank {rank} on {hosts[rank]}" + (f" and {others} more" if others else "")
    return replace(found, result=f"{found.result} ({place})")
