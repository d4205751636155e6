"""What is known of jobs without asking Slurm: which were submitted, what they wrote, how far they got."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Entry:
    """One submission."""

    job: str
    """Slurm's number"""
    name: str
    script: str
    directories: list[str]
    """the run's directory, or one per task of the array"""
    array: bool
    time: str
    """when, ISO 8601"""

    def __post_init__(self) -> None:
        """Raises TypeError where a line of the file had something else."""
        words = (self.job, self.name, self.script, self.time, *self.directories)
        if not (isinstance(self.directories, list) and all(isinstance(word, str) for word in words)):
            raise TypeError("not a submission")

    def directory(self, job: str) -> Path | None:
        """The run's directory of this job or task (``123`` or ``123_4``)."""
        task = job.partition("_")[2] if self.array else "0"
        index = int(task or 0) if task.isdecimal() or not task else len(self.directories)
        return Path(self.directories[index]) if index < len(self.directories) else None

    def jobs(self) -> list[str]:
        """The job's number, or those of the array's tasks."""
        return [f"{self.job}_{index}" for index in range(len(self.directories))] if self.array else [self.job]


def place() -> Path:
    """Where submissions are noted."""
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return home / "hpcopt" / "jobs.jsonl"


def note(entry: Entry) -> None:
    """Appends a submission.

    Raises:
        OSError: the file cannot be written.
    """
    path = place()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(entry)) + "\n")  # one write, so that two submissions do not mix


def entries() -> list[Entry]:
    """All submissions, oldest first; lines that are none are passed over."""
    found = []
    for line in read_lines(place()):
        with suppress(TypeError):
            found.append(Entry(**line))
    return found


def read_lines(path: Path, tail: int | None = None) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, or of its last ``tail`` bytes; none where there is no file."""
    try:
        with path.open("rb") as file:
            if tail is not None:
                file.seek(max(0, file.seek(0, os.SEEK_END) - tail))
            text = file.read()
    except (OSError, ValueError):  # no such file, or no name of one
        return
    yield from objects(text)


def objects(text: bytes) -> Iterator[dict[str, Any]]:
    """The objects of JSON lines; what is none is passed over: being written, cut, or somebody else's."""
    for line in text.splitlines():
        with suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value


@dataclass(frozen=True)
class Progress:
    """How far a run is, from what is in its directory."""

    round: int | None = None
    rounds: int | None = None
    loss: float | str | None = None


def progress(directory: Path) -> Progress:
    """The last record in log.jsonl, and the rounds that the config asks for."""
    records = [
        line for line in read_lines(directory / "log.jsonl", TAIL_BYTES) if line.get("event") == "record"
    ]
    last = records[-1] if records else {}
    round, loss = last.get("round"), last.get("loss")
    return Progress(
        int(round) if isinstance(round, (int, float)) and isfinite(round) else None,
        _rounds(directory),
        loss if isinstance(loss, (float, str)) else None,
    )


def status(directory: Path, job: str | None = None) -> dict[str, Any]:
    """The last line of the exit-status file that a job's script wrote, of this job if one is named."""
    lines = [line for line in read_lines(directory / "status") if job in (None, line.get("job"))]
    last = lines[-1] if lines else {}
    return {key: value for key, value in last.items() if isinstance(value, (str, int))}


def _rounds(directory: Path) -> int | None:
    with suppress(OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return int(tomllib.loads((directory / "config.toml").read_text("utf-8"))["run"]["rounds"])
    return None
