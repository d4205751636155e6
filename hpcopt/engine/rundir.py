"""A run's directory: config.toml, run.h5, trace.h5, checkpoints/, log.jsonl; one job at a time keeps it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from hpcopt.config import RunConfig, dump, parse
from hpcopt.control.agree import agreed
from hpcopt.errors import UserError
from hpcopt.ground import files
from hpcopt.ground.stamps import now
from hpcopt.storage.checkpoint import Checkpoints
from hpcopt.storage.lease import NAME as OWNER
from hpcopt.storage.lease import Lease, visible
from hpcopt.storage.metrics import RunFile, Schema, read_header
from hpcopt.storage.records import readable
from hpcopt.storage.trace_file import TraceFile


class RunDirectory:
    """The directory of one run. Every method is collective; rank 0 touches the files.

    Args:
        comm: all ranks of the job.
        path: the directory.
        config: the run's config.
    """

    METRICS = "run.h5"
    OF_A_RUN = ("config.toml", METRICS, "trace.h5", "checkpoints")

    def __init__(self, comm: MPI.Comm, path: Path, config: RunConfig) -> None:
        self.path, self.comm, self.config = path, comm, config
        self.metrics = path / self.METRICS
        self.checkpoints = Checkpoints(comm, path / "checkpoints", config.run.keep_checkpoints)
        self._lease = Lease(path)  # this and the files on rank 0 only
        self._file: RunFile | None = None
        self._trace: TraceFile | None = None

    def claim(self) -> None:
        """Makes the directory of a new run, and this job its owner.

        Raises:
            UserError: it holds a run already, another job writes there, it cannot be written, or not all
                hosts share it.
        """

        def make() -> None:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", error)
                raise UserError(f"{self.path}: cannot be made ({reason})") from None
            self._own()
            if any((self.path / name).exists() for name in self.OF_A_RUN):
                raise UserError(
                    f"{self.path}: already holds a run; go on with it by `hpcopt resume {self.path}`, "
                    "or choose another directory with --out"
                )

        self._on_rank_0(make)
        self._check_shared()

    def own(self) -> None:
        """Makes this job the owner of the directory, as `claim` does; raises as it does."""
        self._on_rank_0(self._own)
        self._check_shared()

    def release(self) -> None:
        """Others may write there now. Local."""
        self._lease.release()

    def _check_shared(self) -> None:
        token = self.comm.bcast(self._lease.token)
        with agreed(self.comm):
            if not visible(self.path, token):
                raise UserError(
                    f"{self.path}: {MPI.Get_processor_name()} does not see what rank 0 has written there; "
                    "the directory has to be on a file system that all hosts share"
                )

    def _own(self) -> None:
        self._lease.take()
        for name in (OWNER, *self.OF_A_RUN, "log.jsonl", "alive"):
            if (self.path / name).is_symlink():
                raise UserError(
                    f"{self.path / name}: is a symbolic link, which is not followed in a run's directory"
                )

    def signs(self) -> Path:
        """The folder, empty, in which ranks leave signs of life while a job runs; a kill leaves it there."""
        folder = self.path / "alive"

        def make() -> None:
            with files.refusals(folder):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(exist_ok=True)

        self._on_rank_0(make)
        return folder

    def write_config(self, round: int) -> list[str]:
        """Writes config.toml as it is run, every default filled in; its comments say what changed when.

        Args:
            round: from which on it is run.

        Returns:
            What it changes, in words.
        """

        def write() -> list[str]:
            path, history, changes = self.path / "config.toml", [], []
            if path.is_file():
                history = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
                changes = [
                    f"from round {round} on {key} = {json.dumps(now)}, until then {json.dumps(then)}"
                    for key, (then, now) in _changes(parse(path), self.config).items()
                ]
            lines = [*history, *(f"# {change}" for change in changes), dump(self.config)]
            with files.replacing(path) as partial:
                partial.write_text("\n".join(lines), encoding="utf-8")
            return changes

        changes: list[str] = self._on_rank_0(write)
        return changes

    def finished_at(self) -> int | None:
        """The last round of a run that is complete, where the config asks for no more; else None.

        Raises:
            UserError: the config asks for less than is done, or for another run.
        """
        header = self._on_rank_0(lambda: read_header(self.metrics)) or {}
        if header.get("stopped_by", "") in (
            "",
            "not finite",
        ):  # a run that diverged goes on from where it had not
            return None
        for key, mine in self.config.identity().items():
            if key in header and header[key] != mine:
                raise UserError(
                    f"{self.metrics}: was written with {key} = {header[key]!r}, but the config says {mine!r}"
                )
        with readable(self.metrics):
            by_itself = header["stopped_by"] in ("target_loss", "max_seconds", "method")
            changes = _changes(json.loads(header["config"]), self.config)
            last, rounds = int(header["last_round"]), self.config.run.rounds
        if last > rounds:
            raise UserError(f"{self.path}: {last} rounds are done, and run.rounds = {rounds} are fewer")
        return last if last == rounds or (by_itself and not changes) else None

    def open_metrics(self, schema: Schema, round: int, attributes: dict[str, Any], job: Any) -> None:
        """Opens run.h5 with the schema's room, and trace.h5; an earlier job's rows up to ``round`` stay.

        Raises:
            UserError: one cannot be written, or the earlier job's run.h5 is missing.
        """
        flush_seconds = self.config.run.flush_seconds

        def make() -> RunFile:
            earlier = read_header(self.metrics)
            about = attributes | {"start": earlier.get("start", now())}
            with readable(self.metrics):
                changed = _changes(json.loads(earlier.get("config", "{}")), self.config) if earlier else {}
                jobs = [*json.loads(earlier.get("jobs", "[]")), job | {"changed": changed}]
            about["jobs"] = json.dumps(jobs)
            if round == 0:
                return RunFile.create(self.metrics, schema, about, flush_seconds)
            return RunFile.reopen(self.metrics, schema, about, flush_seconds, round)

        with agreed(self.comm):
            if self.comm.rank == 0:
                self._file = make()
                about = {"workers": self.config.run.workers, "dim": attributes["dim"]}
                self._trace = TraceFile(self.path / "trace.h5", about, flush_seconds)
                self._trace.begin(round)

    def append(self, record: Mapping[str, Any]) -> None:
        """Appends a record, the same on every rank, to run.h5."""
        with agreed(self.comm):
            if self._file is not None:
                if self._lease.lost:
                    self._lease.check()
                self._file.append(record)

    def append_trace(self, round: int, rows: Mapping[str, NDArray[np.int64]]) -> None:
        """Appends to trace.h5 what a method's `trace` gives where the run rests before a round."""
        if not rows:  # of no rank
            return
        ranks = self.comm.gather(rows)
        with agreed(self.comm):
            if self._trace is not None and ranks is not None:
                self._trace.append(
                    round, {name: np.concatenate([one[name] for one in ranks]) for name in rows}
                )

    def flush(self) -> None:
        """Forces records and trace to the disk."""
        with agreed(self.comm):
            self._flush()

    def finish(self, stopped_by: str, round: int) -> None:
        """Cuts run.h5 to its records and says how the run ended.

        Raises:
            UserError: it cannot be written, or the directory is another job's now.
        """
        end = {"end": now(), "stopped_by": stopped_by, "last_round": round}
        with agreed(self.comm):
            self._flush()
            if self._file is not None:
                self._file.finish(end)

    def close(self) -> None:
        """Leaves run.h5 as it is, and trace.h5 with what was appended. Local."""
        if self._trace is not None and self._lease.held():
            self._trace.close()
        if self._file is not None:
            self._file.close()

    def _flush(self) -> None:
        if self._file is not None:
            self._lease.check()
        if self._trace is not None:
            self._trace.flush()
        if self._file is not None:
            self._file.flush()

    def _on_rank_0(self, work: Callable[[], Any]) -> Any:
        """Does local work on rank 0; its result, or its `HpcoptError`, comes to every rank."""
        result = None
        with agreed(self.comm):
            if self.comm.rank == 0:
                result = work()
        return self.comm.bcast(result)


def _changes(before: dict[str, dict[str, Any]], config: RunConfig) -> dict[str, list[Any]]:
    """TABLE.KEY -> what it was and what it is now; keys that a config did not have were at their defaults."""
    changes = {}
    for name, table in config.tables().items():
        fields, then = type(getattr(config, name)).model_fields, before.get(name, {})
        for key in sorted(table.keys() | then.keys()):
            default = fields[key].get_default(call_default_factory=True) if key in fields else None
            if then.get(key, default) != table.get(key, default):
                changes[f"{name}.{key}"] = [then.get(key, default), table.get(key, default)]
    return changes
