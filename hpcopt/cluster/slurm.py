"""Slurm's own commands, none of them without a time limit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from hpcopt.errors import UserError

LIMIT_SECONDS = 15.0
# between squeue's fields: no name or path that users type has it in it
SEPARATOR = "\x1f"
FIELDS = ("%i", "%T", "%r", "%M", "%D", "%k", "%o", "%j")
# a job in any other state comes back no more
LIVE = (
    *("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "COMPLETING", "REQUEUED", "REQUEUE_HOLD"),
    *("REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT", "RESV_DEL_HOLD"),
)


class NoAnswer(UserError):
    """Slurm did not answer in time; what it was asked for may happen all the same."""


def call(command: Sequence[str], limit: float = LIMIT_SECONDS) -> str:
    """What a command of Slurm prints.

    Args:
        command: the program and its arguments; no shell sees them.
        limit: after so long it is killed, with whatever it started [s].

    Raises:
        UserError: there is no such program, or it refuses, with Slurm's own reason.
        NoAnswer: it does not answer.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its children can be ended with it: they hold the pipes open
            env=_environment(),
        )
    except OSError as error:
        raise UserError(
            f"{command[0]}: cannot be started ({error.strerror}); this needs Slurm, on a login node"
        ) from None
    try:
        printed, complaint = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise NoAnswer(_no_answer(process, command[0], limit)) from None
    except BaseException:
        _kill(process)
        raise
    if process.returncode:
        reason = f"{command[0]}: {_reason(complaint) or f'exit code {process.returncode}'}"
        # Slurm's own time limit: the controller may still find the request when it comes back
        if "timed out" in reason:
            raise NoAnswer(f"{reason}; is Slurm's controller (slurmctld) down?")
        raise UserError(reason)
    return printed


@dataclass(frozen=True)
class QueuedJob:
    """A job, or a task of a job array, that Slurm knows."""

    id: str
    state: str
    reason: str
    elapsed: str
    nodes: str
    comment: str
    script: str
    name: str

    @property
    def number(self) -> str:
        """Of the job, without the array's task."""
        return self.id.partition("_")[0]

    @property
    def live(self) -> bool:
        """Whether it waits, runs or may come back."""
        return self.state in LIVE


def queue(limit: float = LIMIT_SECONDS) -> list[QueuedJob]:
    """The user's jobs, also those that ended in the last minutes, one per task of an array.

    Raises:
        UserError: as `call`.
    """
    command = ["squeue", "--noheader", "--all", "--array", "--states=all", f"--user={os.getuid()}"]
    lines = call([*command, f"--format={SEPARATOR.join(FIELDS)}"], limit).splitlines()
    rows = (line.split(SEPARATOR) for line in lines)
    return [QueuedJob(*(field.strip() for field in row)) for row in rows if len(row) == len(FIELDS)]


def array_limit(limit: float = LIMIT_SECONDS) -> int | None:
    """How many tasks a job array may have at this site; None where that cannot be told."""
    with suppress(UserError):
        found = re.search(
            r"^MaxArraySize\s*=\s*(\d+)", call(["scontrol", "show", "config"], limit), re.MULTILINE
        )
        return int(found[1]) if found else None
    return None


def _environment() -> dict[str, str]:
    """Without the user's own settings of squeue, which would hide jobs or change the fields."""
    return {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}


def _no_answer(process: subprocess.Popen[str], name: str, limit: float) -> str:
    _kill(process)
    complaint = _reason(process.communicate()[1])
    text = f"{name}: no answer within {limit:g} s; is Slurm's controller (slurmctld) down?"
    return f"{text} It said: {complaint}" if complaint else text


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _reason(complaint: str) -> str:
    """What Slurm said, on one line, without the program's name on every line."""
    lines = [line.split(": error: ")[-1].split(": fatal: ")[-1].strip() for line in complaint.splitlines()]
    return "; ".join(line for line in lines if line)
