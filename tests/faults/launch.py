"""Starts jobs as a user does, each with a time limit, and never leaves a process behind. No MPI in here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = ("OMPI_", "PMIX_", "PMI_", "PRTE_")
SHARED = {"OMPI_MCA_mpi_yield_when_idle": "1"}
"""who waits leaves the cores to others: there is always somebody"""
_IN_ENVIRONMENT = ["bash", "-c", f'source "{ROOT}/jobs/env.sh" && exec "$@"', "launch"]


@dataclass(frozen=True, repr=False)
class Outcome:
    """How a job ended.

    Attributes:
        code: its exit code; negative: the signal that killed the launcher; None: it hung.
        seconds: how long it took.
        out, err: what it printed.
    """

    code: int | None
    seconds: float
    out: str
    err: str

    def __repr__(self) -> str:
        if self.code is None:
            how = f"hung after {self.seconds:.1f} s"
        elif self.code < 0:
            how = f"killed by signal {-self.code}"
        else:
            how = f"exit code {self.code} after {self.seconds:.1f} s"
        return f"{how}\n--- stdout\n{self.out[-4000:]}\n--- stderr\n{self.err[-8000:]}"


class Started:
    """A job that runs; as a context it is certain to be gone at the end."""

    def __init__(
        self,
        command: Sequence[str | Path],
        ranks: int = 1,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        under: Sequence[str] = (),
    ) -> None:
        """Starts ``command`` on ``ranks`` ranks (1: without a launcher), behind the prefix ``under``."""
        self.tag = f"HPCOPT_TEST_JOB={uuid.uuid4().hex}"
        name, _, value = self.tag.partition("=")
        inherited = {key: old for key, old in os.environ.items() if not key.startswith(LAUNCHERS)}
        launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
        self._out, self._err = _scratch(), _scratch()
        self._begun = time.monotonic()
        self.process = subprocess.Popen(
            [*_IN_ENVIRONMENT, *under, *launcher, *map(str, command)],
            env=inherited | SHARED | {"HPCOPT_PROGRESS": "lines", name: value} | dict(env or {}),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )

    def __enter__(self) -> Started:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def wait(self, limit: float) -> Outcome:
        """Its end, or after ``limit`` seconds since the start the end of everything that belongs to it."""
        try:
            code = self.process.wait(max(0.0, limit - (time.monotonic() - self._begun)))
        except subprocess.TimeoutExpired:
            code = None
        seconds = time.monotonic() - self._begun
        self.kill()
        return Outcome(code, seconds, _text(self._out), _text(self._err))

    def printed(self) -> str:
        """What is on stderr so far."""
        return _text(self._err)

    def ranks(self) -> dict[int, int]:
        """Rank -> process id of the ranks that live."""
        found = {}
        for pid in self._members():
            for name in _environment(pid):
                if name.startswith("OMPI_COMM_WORLD_RANK="):
                    found[int(name.partition("=")[2])] = pid
        return found

    def kill(self) -> None:
        """Kills whatever is left: the launcher may give its ranks groups of their own, so the tag counts."""
        while left := self._members():
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.process.poll()
            time.sleep(0.02)
        self.process.wait()

    def _members(self) -> list[int]:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return [pid for pid in pids if self.tag in _environment(pid)]


def launch(
    command: Sequence[str | Path],
    ranks: int = 1,
    *,
    limit: float = 120,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    under: Sequence[str] = (),
) -> Outcome:
    """Runs a command to its end, at most ``limit`` seconds; see `Started`."""
    with Started(command, ranks, env=env, cwd=cwd, under=under) as job:
        return job.wait(limit)


def one_by_one(
    folder: Path, commands: Sequence[Sequence[str | Path]], ranks: int, **how: Any
) -> list[dict[str, Any]]:
    """How hpcopt command lines end, one after the other in one job (batch.py): the ranks' codes and texts."""
    cases = folder / "cases.json"
    cases.write_text(json.dumps([list(map(str, command)) for command in commands]))
    outcome = launch(["python", Path(__file__).with_name("batch.py"), cases], ranks, **how)
    assert outcome.code == 0, outcome
    ends = [json.loads(line) for line in outcome.out.splitlines() if line.startswith('{"case"')]
    assert len(ends) == len(commands), outcome
    return ends


def at_once(stories: Iterable[Callable[[], object]]) -> None:
    """Several stories that mostly wait, each of which may fail."""
    stories = list(stories)
    with ThreadPoolExecutor(len(stories)) as threads:
        for told in [threads.submit(story) for story in stories]:
            told.result()


def _scratch() -> IO[bytes]:
    # files, not pipes: a pipe that a left-over process holds open would block the reader
    return tempfile.TemporaryFile()


def _text(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), 1 << 24, 0).decode(errors="replace")


def _environment(pid: int) -> list[str]:
    """A living process's environment; empty for one that is gone, a zombie or somebody else's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
