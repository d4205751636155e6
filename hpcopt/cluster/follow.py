"""`hpcopt jobs --follow`: a job's progress while it waits, runs, goes back into the queue and ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcopt.cluster import jobs, registry
from hpcopt.cluster.slurm import LIMIT_SECONDS
from hpcopt.errors import UserError
from hpcopt.ground.terminal import printable

POLL_SECONDS = 1.0
# Slurm's controller serves many users: it is not asked more often than this
ASK_SECONDS = 10.0
SHOWN = ("loss", "test_loss", "accuracy", "gap", "distance")


def follow(
    target: str,
    say: Callable[[str], object],
    limit: float = LIMIT_SECONDS,
    poll: float = POLL_SECONDS,
    ask: float = ASK_SECONDS,
) -> bool:
    """Tells a job's progress until it has ended; whether its run is complete.

    Args:
        target: a job's number or a run's directory.
        say: gets the lines.
        limit: for each question to Slurm [s].
        poll: between looks at log.jsonl [s].
        ask: between questions to Slurm [s].

    Raises:
        UserError: there is no such job, or nothing is known of its directory.
    """
    row = jobs.find(target, limit)
    directory = row.directory
    if directory is None:
        raise UserError(f"{target}: its directory is not known; name it: hpcopt jobs --follow DIR")
    log, told, asked = _Log(directory), "", time.monotonic()
    while True:
        told = _tell_state(row, told, say)
        for event in log.new():
            say(printable(describe(event, log.rounds)))
        if not row.live:
            return _outcome(directory, log.finished, say)
        time.sleep(poll)
        if time.monotonic() - asked > ask:
            row, asked = _again(row, limit, say), time.monotonic()


def describe(event: dict[str, Any], rounds: int | None) -> str:
    """One line of log.jsonl for people."""
    kind = event.get("event")
    if kind == "record":
        shown = (f"{name} {_short(event[name])}" for name in SHOWN if name in event)
        seconds = _short(event.get("seconds", 0.0))
        return f"round {_short(event.get('round', 0))}/{rounds or '?'}  {seconds} s  {'  '.join(shown)}"
    if kind == "message":
        return str(event.get("text", ""))
    details = (
        f"{key} {value}" for key, value in event.items() if key not in ("event", "time") and value != ""
    )
    return f"{event.get('time', '')} {kind}: {', '.join(details)}"


class _Log:
    """What is new in log.jsonl since the last look; a line that is still being written waits for the next."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._at = directory, 0
        self.finished = False
        self.rounds: int | None = None

    def new(self) -> Iterator[dict[str, Any]]:
        with suppress(OSError), (self._directory / "log.jsonl").open("rb") as file:
            file.seek(self._at)
            text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._at += len(whole)
            self.rounds = registry.progress(self._directory).rounds
            for event in registry.objects(whole):
                self.finished = event.get("event") == "end"
                yield event


def _tell_state(row: jobs.Row, told: str, say: Callable[[str], object]) -> str:
    state = f"{row.id}: {row.state}{f' ({row.reason})' if row.reason else ''}"
    if row.state and state != told:
        say(printable(state))
    return state


def _again(row: jobs.Row, limit: float, say: Callable[[str], object]) -> jobs.Row:
    """The job as it is now; as it was where Slurm does not answer."""
    try:
        now = [other for other in jobs.rows(everything=True, limit=limit) if other.id == row.id]
    except UserError as error:
        say(f"warning: {error}")
        return row
    return now[0] if now else replace(row, state="", live=False)


def _outcome(directory: Path, finished: bool, say: Callable[[str], object]) -> bool:
    last = registry.status(directory)
    if last:
        say(f"{directory}: {last.get('state', 'ended')}, exit code {last.get('code')}")
        return bool(last.get("code") == 0)
    return finished


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
