"""A sweep's directory: the plan, a run's directory for each case, what failed, and who has taken what. Local.

DIR/sweep.toml          the plan
DIR/cases/NAME/         a run's directory
DIR/failed/NAME.json    how a case failed, until it has succeeded
DIR/claims/TOKEN/       while a job works: a file for each case that a group of its ranks has taken
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hpcopt.config import sweep as planning
from hpcopt.config.sweep import Case, Plan
from hpcopt.engine.rundir import RunDirectory
from hpcopt.errors import UserError
from hpcopt.ground import files
from hpcopt.ground.stamps import now
from hpcopt.storage.lease import Lease, visible
from hpcopt.storage.metrics import read_header

DONE, FAILED, OPEN = "done", "failed", "open"


class Failure(NamedTuple):
    """How a case ended that is not done.

    Attributes:
        code: its exit code.
        message: what was wrong.
        ranks: of the group that ran it.
        traceback: of what the user's code raised; empty for other errors.
    """

    code: int
    message: str
    ranks: int
    traceback: str = ""


class SweepDirectory:
    """Made by every rank of a job; one of them opens and releases it.

    Args:
        path: the directory.
        plan: what is run there.
    """

    CASES, FAILED, CLAIMS = "cases", "failed", "claims"

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan
        self._lease = Lease(path)
        self._claims = path / self.CLAIMS

    def open(self) -> str:
        """Makes this process's job the owner of the directory; a name that only this job has.

        Raises:
            UserError: another job works there, it holds another plan or a run, or it cannot be written.
        """
        with files.refusals(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._lease.take()
        held = [name for name in RunDirectory.OF_A_RUN if (self.path / name).exists()]
        if held:
            raise UserError(f"{self.path}: holds a run ({held[0]}); choose another directory with --out")
        file = self.path / planning.FILE
        begun = planning.read(file) if file.exists() else None
        if begun is not None and (differs := self.plan.differences(begun)):
            lines = "\n  ".join(differs)
            raise UserError(f"{self.path}: holds another sweep; choose another directory\n  {lines}")
        if begun is None or begun["cases"] != self.plan.written()["cases"]:
            self._write(file)
        with files.refusals(self._claims):
            shutil.rmtree(self._claims, ignore_errors=True)  # of a job that was killed
            for folder in (self._claims / self._lease.token, self.path / self.FAILED):
                folder.mkdir(parents=True, exist_ok=True)
        return self._lease.token

    def join(self, token: str) -> None:
        """Takes part in the job that has opened the directory.

        Raises:
            UserError: this host does not see it.
        """
        self._claims = self.path / self.CLAIMS / token
        if not visible(self.path, token):
            raise UserError(
                f"{self.path}: not all hosts see what rank 0 has written there; the directory has to be on a "
                "file system that they share"
            )

    def close(self) -> None:
        """Removes what only a job at work needs: nobody works here any more."""
        shutil.rmtree(self.path / self.CLAIMS, ignore_errors=True)

    def release(self) -> None:
        """Others may work there now."""
        self._lease.release()

    def run(self, case: Case) -> Path:
        """A case's own directory."""
        return self.path / self.CASES / case.name

    def state(self, case: Case) -> str:
        """Whether a case is done, failed, or still to be run or gone on with."""
        stopped_by = ""
        with suppress(UserError):  # a damaged file: the run itself tells
            stopped_by = read_header(self.run(case) / RunDirectory.METRICS).get("stopped_by", "")
        if stopped_by not in ("", "not finite"):
            files.discard(self._failure(case))
            return DONE
        return FAILED if self._failure(case).exists() else OPEN

    def claim(self, number: int) -> bool:
        """Takes a case for this group; False: another one has it."""
        with files.refusals(self._claims):
            try:
                os.close(os.open(self._claims / str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            except FileExistsError:
                return False
        return True

    def ended(self, number: int) -> int:
        """Notes that a case has ended; how many have in this job, as far as this host sees."""
        with files.refusals(self._claims):
            (self._claims / f"{number}.ended").touch()
            return sum(name.endswith(".ended") for name in os.listdir(self._claims))

    def stop(self) -> None:
        """Asks all groups of the job to stop."""
        with suppress(OSError):
            (self._claims / "stop").touch()

    def stops(self) -> bool:
        """Whether one has asked for that."""
        return (self._claims / "stop").exists()

    def failed(self, case: Case, failure: Failure) -> None:
        """Writes down how a case failed; also several ranks at once."""
        path = self._failure(case)
        told = {"exit_code": failure.code, "message": failure.message, "when": now(), "ranks": failure.ranks}
        if failure.traceback:
            told["traceback"] = failure.traceback
        partial = path.with_name(f".{secrets.token_hex(8)}{files.PARTIAL}")
        with files.refusals(path):
            partial.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        files.commit(partial, path)

    def succeeded(self, case: Case) -> None:
        """Forgets that a case had failed before."""
        files.discard(self._failure(case))

    def failure(self, case: Case) -> dict[str, Any]:
        """What is known of a failed case: exit_code, message, when, ranks."""
        with suppress(OSError, ValueError):
            return dict(json.loads(self._failure(case).read_text(encoding="utf-8")))
        return {}

    def _failure(self, case: Case) -> Path:
        return self.path / self.FAILED / f"{case.name}.json"

    def _write(self, file: Path) -> None:
        import tomli_w

        with files.replacing(file) as partial:
            partial.write_text(tomli_w.dumps(self.plan.written()), encoding="utf-8")
