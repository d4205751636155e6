"""`hpcopt jobs`: what waits, runs and failed, and why; from squeue and what the jobs wrote."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hpcopt.cluster import registry
from hpcopt.cluster.registry import Entry
from hpcopt.cluster.slurm import LIMIT_SECONDS, QueuedJob, queue
from hpcopt.cluster.submit import SCRIPT
from hpcopt.errors import UserError
from hpcopt.ground.terminal import printable

SHOWN_DAYS = 7
WIDEST = 45  # letters of a reason
# what a job's last words mean, once Slurm has forgotten it
OUTCOMES = {"done": "COMPLETED", "failed": "FAILED", "stopped": "STOPPED"}
SILENT = "ended without a word: killed, cancelled or lost"


@dataclass(frozen=True)
class Row:
    """One job, or one task of an array."""

    id: str
    state: str
    reason: str
    elapsed: str
    nodes: str
    name: str
    directory: Path | None
    live: bool

    def cells(self) -> tuple[str, ...]:
        """What the table shows."""
        now = registry.progress(self.directory) if self.directory else registry.Progress()
        rounds = "" if now.round is None else f"{now.round}/{now.rounds or '?'}"
        loss = f"{now.loss:.4g}" if isinstance(now.loss, float) else str(now.loss or "")
        last = registry.status(self.directory, self.id) if self.directory else {}
        code = last.get("code")
        said = f"{last.get('state', '')}{'' if code is None else f' ({code})'}"
        where = str(self.directory or "")
        known = (self.id, self.state, self.reason, self.elapsed, self.nodes)
        return tuple(map(printable, (*known, rounds, loss, said, self.name, where)))


HEADER = ("job", "state", "reason", "elapsed", "nodes", "round", "loss", "said", "name", "directory")


def table(everything: bool = False, limit: float = LIMIT_SECONDS) -> str:
    """The table as text: live jobs first, then the ended ones of the last week, or all.

    Raises:
        UserError: Slurm does not answer or refuses.
    """
    found = sorted(rows(everything, limit), key=lambda row: (not row.live, _number(row.id)))
    lines = [HEADER, *(row.cells() for row in found)]
    if not found:
        return "no jobs of hpcopt"
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    text = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in text)


def rows(everything: bool = False, limit: float = LIMIT_SECONDS) -> list[Row]:
    """All jobs of this user that are hpcopt's."""
    known = registry.entries()
    # by the script too: it may have been submitted again by hand, and another cluster has the same numbers
    scripts = {entry.script: entry for entry in known}
    exact = {(entry.job, entry.script): entry for entry in known}
    listed = [job for job in queue(limit) if job.comment == "hpcopt" or job.script in scripts]
    here = [_queued(job, exact.get((job.number, job.script)) or scripts.get(job.script)) for job in listed]
    seen = {(job.id, job.script) for job in listed}
    old = [entry for entry in known if everything or _recent(entry)]
    return here + [
        _forgotten(entry, job) for entry in old for job in entry.jobs() if (job, entry.script) not in seen
    ]


def find(target: str, limit: float = LIMIT_SECONDS) -> Row:
    """The job of this number, or the last one of this run's directory.

    Raises:
        UserError: there is none, or Slurm does not answer.
    """
    every = rows(everything=True, limit=limit)
    named = [row for row in every if row.id == target]
    if named:
        return named[-1]
    directory = Path(target).absolute()
    last = str(registry.status(directory).get("job", ""))
    here = [row for row in every if row.directory == directory]
    here += [replace(row, directory=directory) for row in every if row.id == last and not row.directory]
    if here:
        return max(here, key=lambda row: (row.live, row.id == last))
    if os.path.isdir(directory):  # a run without Slurm
        return Row(last, "", "", "", "", "", directory, live=False)
    raise UserError(f"{target}: neither a job of hpcopt's (see hpcopt jobs --all) nor a run's directory")


def _queued(job: QueuedJob, entry: Entry | None) -> Row:
    directory = entry.directory(job.id) if entry else None
    if directory is None and Path(job.script).name == SCRIPT and "_" not in job.id:
        directory = Path(job.script).parent
    reason = "" if job.reason == "None" else job.reason
    return Row(job.id, job.state, reason, job.elapsed, job.nodes, job.name, directory, job.live)


def _forgotten(entry: Entry, job: str) -> Row:
    """A job that Slurm knows no more."""
    directory = entry.directory(job)
    said = registry.status(directory, job).get("state", "") if directory else ""
    state = OUTCOMES.get(said, "GONE")
    return Row(job, state, "" if said in OUTCOMES else SILENT, "", "", entry.name, directory, live=False)


def _recent(entry: Entry) -> bool:
    try:
        return datetime.now(UTC) - datetime.fromisoformat(entry.time) < timedelta(days=SHOWN_DAYS)
    except (ValueError, TypeError):
        return True


def _number(job: str) -> tuple[int, int]:
    first, _, second = job.partition("_")
    return int(first) if first.isdecimal() else 0, int(second) if second.isdecimal() else 0
