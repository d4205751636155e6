"""A run's directory: config.toml, run.h5, trace.h5, checkpoints/, log.jsonl; all ranks of a job keep it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from hpcopt.config import RunConfig, dump
from hpcopt.control.agree import agreed
from hpcopt.errors import UserError
from hpcopt.ground import files
from hpcopt.ground.stamps import now
from hpcopt.storage.checkpoint import Checkpoints
from hpcopt.storage.metrics import RunFile, Schema, read_header
from hpcopt.storage.trace_file import TraceFile


class RunDirectory:
    """The directory of one run. Every method is collective; rank 0 touches the files.

    Args:
        comm: all ranks of the job.
        path: the directory.
        config: the run's config.
    """

    METRICS = "run.h5"

    def __init__(self, comm: MPI.Comm, path: Path, config: RunConfig) -> None:
        self.path, self.comm, self.config = path, comm, config
        self.metrics = path / self.METRICS
        self.checkpoints = Checkpoints(comm, path / "checkpoints", config.run.keep_checkpoints)
        self._file: RunFile | None = None  # on rank 0 only
        self._trace: TraceFile | None = None  # there, too

    def claim(self) -> None:
        """Makes the directory of a new run.

        Raises:
            UserError: it holds a run already, or cannot be written.
        """

        def make() -> None:
            try:
                names = ("config.toml", "run.h5", "trace.h5", "checkpoints")
                taken = any((self.path / name).exists() for name in names)
                self.path.mkdir(parents=True, exist_ok=True)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", error)
                raise UserError(f"{self.path}: cannot be made ({reason})") from None
            if taken:
                raise UserError(
                    f"{self.path}: already holds a run; go on with it by `hpcopt resume {self.path}`, "
                    "or choose another directory with --out"
                )

        self._on_rank_0(make)

    def write_config(self) -> None:
        """Writes config.toml as it is run, every default filled in."""

        def write() -> None:
            with files.replacing(self.path / "config.toml") as partial:
                partial.write_text(dump(self.config), encoding="utf-8")

        self._on_rank_0(write)

    def finished_at(self) -> int | None:
        """The last round of a run that is complete, where the config asks for no more; else None."""
        header = self._on_rank_0(lambda: read_header(self.metrics)) or {}
        if not header.get("stopped_by"):
            return None
        by_itself = header["stopped_by"] in ("target_loss", "max_seconds", "method")
        unchanged = _unchanged(json.loads(header["config"]), self.config)
        last = int(header["last_round"])
        return last if last >= self.config.run.rounds or (by_itself and unchanged) else None

    def open_metrics(self, schema: Schema, round: int, attributes: dict[str, Any], job: Any) -> None:
        """Opens run.h5 with the schema's room, and trace.h5; an earlier job's rows up to ``round`` stay.

        Raises:
            UserError: one cannot be written, or the earlier job's run.h5 is missing.
        """
        flush_seconds = self.config.run.flush_seconds

        def make() -> RunFile:
            earlier = read_header(self.metrics)
            about = attributes | {"start": earlier.get("start", now())}
            about["jobs"] = json.dumps([*json.loads(earlier.get("jobs", "[]")), job])
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
        """Cuts run.h5 to its records and says how the run ended."""
        end = {"end": now(), "stopped_by": stopped_by, "last_round": round}
        with agreed(self.comm):
            self._flush()
            if self._file is not None:
                self._file.finish(end)

    def close(self) -> None:
        """Leaves run.h5 as it is, and trace.h5 with what was appended. Local."""
        if self._trace is not None:
            self._trace.flush()
        if self._file is not None:
            self._file.close()

    def _flush(self) -> None:
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


def _unchanged(before: dict[str, dict[str, Any]], config: RunConfig) -> bool:
    """Whether a config asks for the same run; keys that it did not have then were at their defaults."""
    now = config.tables()
    for name, table in now.items():
        fields = type(getattr(config, name)).model_fields
        defaults = {key: fields[key].default for key in table.keys() & fields.keys()}
        if defaults | before[name] != defaults | table:
            return False
    return True
