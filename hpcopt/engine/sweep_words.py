"""What a sweep tells its user."""

from __future__ import annotations

from collections.abc import Sequence

from hpcopt.config.sweep import Case
from hpcopt.engine.sweep_directory import DONE, FAILED, SweepDirectory
from hpcopt.ground.words import counted

WIDEST = 100
"""letters of a message in the last table"""


def table(directory: SweepDirectory, cases: Sequence[Case]) -> str:
    """The cases that failed, a line each."""
    rows = [("case", "exit code", "directory", "message")]
    for case in cases:
        told = directory.failure(case)
        message = first_line(str(told.get("message", "")))
        rows.append((case.name, str(told.get("exit_code", "")), str(directory.run(case)), message))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]])
        for row in rows
    )


def first_line(message: str) -> str:
    """The beginning of a message."""
    line = message.partition("\n")[0]
    return line if len(line) <= WIDEST else line[: WIDEST - 1] + "…"


def beginning(states: list[str], todo: int, every: list[list[int]], ranks: int) -> str:
    """The first line: what there is to do, and who does it."""
    each, idle = len(every[0]), ranks - sum(map(len, every))
    who = f"{counted(len(every), 'group')} of {counted(each, 'rank')}"
    rest = f"; {counted(idle, 'rank')} left over, idle" if idle else ""
    before = ", ".join(f"{states.count(state)} {state} before" for state in (DONE, FAILED) if state in states)
    return f"{counted(len(states), 'case')}{f' ({before})' if before else ''}, {todo} to run, {who}{rest}"
