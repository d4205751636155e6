"""Runs cases as `mpirun -n RANKS hpcopt run` (or resume), several at once, until all have ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
GRACE = 90.0
"""seconds that a run has for its checkpoint when it is stopped"""
NOT_FINITE = 4
"""hpcopt's exit code of a run that diverged: finished, with the metrics until then"""


@dataclass(frozen=True)
class Case:
    """One run of a study.

    Attributes:
        name: its directory below the study's, unique.
        config: the TOML file.
        settings: "table.key" -> value, changes of the config.
        ranks: of its mpirun.
        limit: seconds after which it is stopped as hanging.
    """

    name: str
    config: Path
    settings: dict[str, Any] = field(default_factory=dict, hash=False)
    ranks: int = 1
    limit: float = 1800.0

    @property
    def overrides(self) -> list[str]:
        """The settings as `hpcopt run --set` takes them; JSON's numbers, strings and booleans are TOML's."""
        return [f"{key}={json.dumps(value)}" for key, value in self.settings.items()]


@dataclass
class _Job:
    case: Case
    process: subprocess.Popen[bytes]
    started: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


def work(directory: Path, cases: Sequence[Case], lock: int) -> list[str]:
    """Runs cases, as many at once as there are cores for their ranks; gives the names of those that failed.

    Args:
        directory: of the study.
        cases: what to run.
        lock: a file descriptor that the runs inherit and hold open.

    Raises:
        SystemExit: stopped by Ctrl-C or TERM; the runs have written checkpoints.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    waiting, running, failed, ended = list(cases), list[_Job](), list[str](), 0
    try:
        while waiting or running:
            cores = (os.cpu_count() or 1) - sum(job.case.ranks for job in running)
            while waiting and (not running or cores >= waiting[0].ranks):
                cores -= waiting[0].ranks
                running.append(_start(directory, waiting.pop(0), lock))
            time.sleep(0.2)
            for job in [job for job in running if job.seconds > job.case.limit]:
                _stop([job])
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                ended, code = ended + 1, job.process.returncode
                print(
                    f"[{ended}/{len(cases)}] {job.case.name}: {job.seconds:.0f} s, exit code {code}",
                    flush=True,
                )
                if code not in (0, NOT_FINITE):
                    failed.append(job.case.name)
    except KeyboardInterrupt:
        _stop(running)
        sys.exit("stopped; the same command goes on from here")
    return failed


def _start(directory: Path, case: Case, lock: int) -> _Job:
    """Runs a case, or goes on with it. In a session of its own, so that Ctrl-C does not reach its ranks.

    It inherits the lock: where this process is killed, nobody touches the directory until the run has ended.
    """
    out = directory / case.name
    command = ["mpirun", "-n", str(case.ranks), "hpcopt"]
    if (out / "config.toml").is_file():
        command += ["resume", str(out)]
    else:
        command += ["run", str(case.config)]
        command += [word for override in case.overrides for word in ("--set", override)]
        command += ["--out", str(out)]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(out.name + ".log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True, pass_fds=(lock,)
        )
    return _Job(case, process, time.monotonic())


def _stop(jobs: Sequence[_Job]) -> None:
    """Asks runs for a checkpoint and to end; after a while they have to."""
    signals, patience = (signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL), (GRACE, 10.0, 10.0)
    for what, seconds in zip(signals, patience, strict=True):
        for job in jobs:
            if job.process.poll() is None:
                job.process.send_signal(what)
        until = time.monotonic() + seconds
        for job in jobs:
            with suppress(subprocess.TimeoutExpired):
                job.process.wait(max(0.0, until - time.monotonic()))


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt
