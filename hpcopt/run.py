"""The only place where things are wired together, and the one loop."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI

from hpcopt.comm.agree import agree, agreed
from hpcopt.comm.blocks import block
from hpcopt.comm.launcher import local_rank
from hpcopt.comm.ports import Ports
from hpcopt.comm.reducer import MPIReducer
from hpcopt.comm.staging import Staging, local_device
from hpcopt.comm.stopping import Stop, StopAgreement
from hpcopt.comm.watchdog import Watchdog
from hpcopt.config import RunConfig, dump, from_tables, resumable
from hpcopt.errors import HpcoptError, Interrupted, NotFinite, UserError
from hpcopt.methods.base import Held, Method
from hpcopt.problems.base import Problem, Recipe, Share
from hpcopt.progress import Reporter
from hpcopt.record import Clock, Recorder, Totals
from hpcopt.storage import files, provenance
from hpcopt.storage.checkpoint import Checkpoints
from hpcopt.storage.metrics import RunFile, read_header
from hpcopt.storage.state import check_fits, pieces_of, restore

METHODS = {
    "allreduce_sgd": "hpcopt.methods.allreduce_sgd:AllreduceSGD",
}
PROBLEMS = {
    "linear_regression": "hpcopt.problems.linear_regression:LinearRegression",
    "quadratic": "hpcopt.problems.quadratic:Quadratic",
    "network": "hpcopt.problems.network:Network",
}
IN_PYTHON = "python:recipe"
BUFFERS = "problem_buffers"


def run(
    method: Method[Any],
    problem: Recipe,
    *,
    comm: MPI.Comm | None = None,
    out: str | Path,
    **settings: Any,
) -> Path:
    """Runs a method on a problem, as `hpcopt run` does. Collective over ``comm``.

    Args:
        method: for example ``hpcopt.AllreduceSGD(lr=0.1)``.
        problem: for example ``hpcopt.Network(...)``.
        comm: the ranks; this process alone if None.
        out: the run's directory; must not hold a run.
        settings: keys of the [run] table: ``rounds``, ``seed``, ``evaluate_every``, …

    Returns:
        The path of run.h5.

    Raises:
        UserError: a setting is wrong, on every rank.
        NotFinite: the loss is no longer finite; the metrics are kept.
        Interrupted: a signal came; `resume` goes on from the checkpoint.
    """
    config = _config_in_python(method, problem, out, settings)
    return Job(comm or MPI.COMM_SELF, config, method, problem, Path(out)).execute()


def resume(
    directory: str | Path,
    *,
    method: Method[Any] | None = None,
    problem: Recipe | None = None,
    comm: MPI.Comm | None = None,
    overrides: tuple[str, ...] = (),
) -> Path:
    """Goes on with a run from its newest intact checkpoint, on any number of ranks. Collective.

    Args:
        directory: the run's directory.
        method, problem: what `run` was given, for a run that was started from Python.
        comm: the ranks; this process alone if None.
        overrides: ``"run.rounds=2000"`` and the like.

    Raises:
        NothingToResume: there is no config.toml.
        UserError, NotFinite, Interrupted: as `run`.
    """
    comm, directory = comm or MPI.COMM_SELF, Path(directory)
    with agreed(comm):
        config = resumable(directory, overrides)
        if problem is None and config.problem.kind == IN_PYTHON:
            raise UserError(
                f"{directory}: this run's problem was made in Python; resume it there, with "
                "hpcopt.resume(directory, problem=...)"
            )
    return Job(comm, config, method, problem, directory, resuming=True).execute()


def start(comm: MPI.Comm, config: RunConfig) -> Path:
    """Runs a checked config. Collective; raises as `run`."""
    assert config.run.out is not None
    return Job(comm, config, None, None, Path(config.run.out)).execute()


class Job:
    """One job of a run: built on all ranks in agreement, then looped.

    Args:
        comm: all ranks of the job.
        config: the whole config.
        method, recipe: made from the config if None.
        out: the run's directory.
        resuming: go on with what the directory holds.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        config: RunConfig,
        method: Method[Any] | None,
        recipe: Recipe | None,
        out: Path,
        resuming: bool = False,
    ) -> None:
        self.comm, self.config, self.out, self._resuming = comm, config, out, resuming
        self._method, self._recipe = method, recipe
        self._checkpoints = Checkpoints(comm, out / "checkpoints", config.run.keep_checkpoints)
        self._file: RunFile | None = None  # on rank 0 only
        self.reporter: Reporter | None = None

    def execute(self) -> Path:
        """Builds, loops, finishes; see `run`."""
        name = f"rank {self.comm.rank} of {self.comm.size} on {MPI.Get_processor_name()}"
        self._watchdog = Watchdog(name, self.config.run.stall_seconds)
        try:
            self._check_directory()
            if self._resuming and self._finished():
                return self.out / "run.h5"
            self._build()
            self._open_metrics()
            self._finish(self._loop())
        except HpcoptError:  # raised on every rank at the same place
            self._release()
            raise
        finally:
            self._watchdog.stop()
        self._release()
        return self.out / "run.h5"

    # --- building ----------------------------------------------------------------------------------

    def _check_directory(self) -> None:
        """Checks numbers and the directory before anything expensive."""
        workers, ranks = self.config.run.workers, self.comm.size
        agree(
            self.comm,
            ranks <= workers,
            f"[run] workers = {workers}, but there are {ranks} ranks; every rank hosts at least one worker: "
            f"start at most {workers} ranks or set run.workers to at least {ranks}",
        )
        with agreed(self.comm):
            if self.comm.rank == 0 and not self._resuming:
                claim(self.out, self.config)

    def _finished(self) -> bool:
        """Whether the directory holds a run that is complete, and nothing asks for more."""
        header: dict[str, Any] = {}
        with agreed(self.comm):
            if self.comm.rank == 0:
                header = read_header(self.out / "run.h5")
        header = self.comm.bcast(header)
        if not header or not header.get("stopped_by"):
            return False
        reached = header["stopped_by"] in ("target_loss", "max_seconds", "method")
        done = header["last_round"] >= self.config.run.rounds or (
            reached and header["config"] == json.dumps(self.config.tables())
        )
        if done and self.comm.rank == 0:
            print(f"hpcopt: {self.out}: already finished at round {header['last_round']}")
        return bool(done)

    def _build(self) -> None:
        run = self.config.run
        torch.set_num_threads(1 if run.deterministic else int(os.environ.get("OMP_NUM_THREADS", "1")))
        with agreed(self.comm):
            try:
                self.device = local_device(run.device, local_rank())
            except ValueError as error:
                raise UserError(f"[run] {error}") from None
            self._method = self._method or _load(METHODS[run.method])(self.config.method)
            self.problem = self._bind()
        self.method: Method[Any] = self._method
        staging = Staging(self.device)
        self._settle(staging)
        self.ports = Ports(MPIReducer(self.comm, run.workers, staging, ordered=run.deterministic))
        self._watchdog.beat("the method's start")
        self.state = self.method.start(self.problem, self.ports)
        self.clock = Clock(self.device)
        self.reporter = Reporter(self.out, run.rounds, self.comm.rank == 0)
        self._provenance = self._describe(staging)
        before = self._restore() if self._resuming else None
        self.recorder = Recorder(self.comm, self.problem, self.method, self.ports, self.clock, before)

    def _bind(self) -> Problem:
        run = self.config.run
        self._watchdog.beat("building the problem")
        recipe = self._recipe or _recipe(self.config)
        mine = block(run.workers, self.comm.size, self.comm.rank)
        share = Share(mine, run.workers, run.seed, getattr(torch, run.dtype or "float64"), self.device)
        return recipe.bind(share)

    def _settle(self, staging: Staging) -> None:
        rows = self.problem.statistics()
        if rows is not None:
            reducer = MPIReducer(self.comm, self.config.run.workers, staging, self.config.run.deterministic)
            self.problem.settle(reducer.scalars(rows if reducer.form == "weighted" else rows.sum(0)))
            reducer.free()

    def _restore(self) -> Totals | None:
        """Takes over the newest intact checkpoint; None where there is none yet."""
        found = self._checkpoints.newest()
        if found is None:
            self.reporter.say(f"{self.out}: no checkpoint yet, starting from round 0")
            return None
        path, meta, warnings = found
        for warning in warnings:
            self.reporter.say(f"warning: {warning}")
        for key, mine in self._identity().items():
            if meta[key] != mine:
                raise UserError(f"{path}: was written with {key} = {meta[key]!r}, but the config says {mine!r}")
        tensors = self._tensors()
        check_fits(self.comm, path, meta, tensors)
        restore(self.comm, path, tensors)
        self.state.round = meta["round"]
        self.reporter.say(f"{path}: going on from round {self.state.round}")
        return Totals(**meta["totals"])

    # --- looping -----------------------------------------------------------------------------------

    def _loop(self) -> str:
        """The one loop. Gives the reason why the run is over."""
        run = self.config.run
        self.stopping = StopAgreement(self.comm, self.state.round)
        ended = self._ended(False, Stop.NO) or self._target()
        if ended and self.state.round == 0:
            self._checkpoint()
        self.clock.start()
        while not ended:
            self._watchdog.beat(f"round {self.state.round + 1}")
            info = self.method.step(self.state)
            self.state.round += 1
            self.reporter.round(self.state.round)
            if run.max_seconds is not None and self.clock.now() > run.max_seconds:
                self.stopping.ask(Stop.TIME)
            stop = self.stopping.poll(self.state.round)
            ended = self._ended(info.done, stop)
            if ended or self._due(run.evaluate_every):
                self._record()
                ended = ended or self._target()
            if ended or stop is Stop.SIGNAL or self._due(run.checkpoint_every):
                self._checkpoint()
            if stop is Stop.SIGNAL and not ended:
                self._interrupt()
        self.clock.pause()
        return ended

    def _due(self, every: int) -> bool:
        return every > 0 and self.state.round % every == 0

    def _ended(self, done: bool, stop: Stop) -> str:
        """Why this is the last round; empty if it is not."""
        if self.state.round >= self.config.run.rounds:
            return "rounds"
        if done:
            return "method"
        return "max_seconds" if stop is Stop.TIME else ""

    def _target(self) -> str:
        target = self.config.run.target_loss
        return "target_loss" if target is not None and self._last["metrics/loss"] <= target else ""

    def _open_metrics(self) -> None:
        """Opens run.h5 on rank 0, with the record of round 0 for a new run."""
        run, path = self.config.run, self.out / "run.h5"
        capacity = run.rounds // run.evaluate_every + 3
        fresh = self.state.round == 0
        self._watchdog.beat("the first evaluation")
        self._last = self.recorder.record(self.state.round, self.state)
        schema = self.recorder.schema(self._last)
        with agreed(self.comm):
            if self.comm.rank == 0:
                earlier = read_header(path)
                attributes = self._provenance | {"start": earlier.get("start", provenance.now())}
                attributes["jobs"] = json.dumps([*json.loads(earlier.get("jobs", "[]")), self._job()])
                if fresh:
                    self._file = RunFile.create(path, schema, capacity, attributes, run.flush_seconds)
                else:
                    self._file = RunFile.reopen(
                        path, schema, capacity, attributes, run.flush_seconds, self.state.round
                    )
        self.reporter.event("start", **self._job())
        if fresh:
            self._append()

    def _record(self) -> None:
        self.clock.pause()
        self._watchdog.beat(f"the evaluation after round {self.state.round}")
        self._last = self.recorder.record(self.state.round, self.state)
        self._append()
        self.clock.start()

    def _append(self) -> None:
        with agreed(self.comm):
            if self._file is not None:
                self._file.append(self._last)
        self.reporter.record(self._last)
        loss = self._last["metrics/loss"]
        if not math.isfinite(loss):
            self._close_metrics("not finite")
            raise NotFinite(
                f"the training loss is {loss} at round {self.state.round}; the metrics so far are in "
                f"{self.out / 'run.h5'}. A smaller learning rate may help"
            )

    def _checkpoint(self) -> None:
        self.clock.pause()
        self._watchdog.beat(f"the checkpoint of round {self.state.round}")
        with agreed(self.comm):
            if self._file is not None:
                self._file.flush()  # records up to a checkpoint must outlive it
        meta = self._identity() | {
            "totals": asdict(self.recorder.totals()),
            "model": self.method.model_field,
            "held": {name: held.value for name, (held, _) in self._tensors().items()},
            "layout": asdict(self.problem.layout),
        }
        path = self._checkpoints.write(self.state.round, pieces_of(self.comm, self._tensors()), meta)
        self.reporter.event("checkpoint", round=self.state.round, path=str(path))
        self.clock.start()

    def _interrupt(self) -> None:
        """Everything is left so that `resume` goes on from the checkpoint just written."""
        self.reporter.event("interrupted", round=self.state.round)
        raise Interrupted(
            f"stopped by a signal after round {self.state.round}; the checkpoint is written. "
            f"Go on with: hpcopt resume {self.out}"
        )

    def _finish(self, stopped_by: str) -> None:
        self._close_metrics(stopped_by)
        self.reporter.summary(self._last, self.out / "run.h5")

    def _release(self) -> None:
        """Gives back what was opened, as far as it was. Collective."""
        if self._file is not None:
            self._file.close()
        if self.reporter is not None:
            self.reporter.close()
        if self.stopping is not None:
            self.stopping.close()
        if self.ports is not None:
            self.ports.free()

    def _close_metrics(self, stopped_by: str) -> None:
        with agreed(self.comm):
            if self._file is not None:
                self._file.finish(
                    {"end": provenance.now(), "stopped_by": stopped_by, "last_round": self.state.round}
                )
        self.reporter.event("end", stopped_by=stopped_by, round=self.state.round)
        self.reporter.close()

    # --- describing --------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, tuple[Held, torch.Tensor]]:
        """Everything that a checkpoint holds."""
        return self.state.tensors() | {BUFFERS: (Held.PER_WORKER, self.problem.buffers)}

    def _identity(self) -> dict[str, Any]:
        run = self.config.run
        return {
            "method": run.method,
            "problem": self.config.problem.kind,
            "workers": run.workers,
            "seed": run.seed,
            "dtype": run.dtype,
        }

    def _describe(self, staging: Staging) -> dict[str, Any]:
        """The root attributes of run.h5. Collective."""
        hosts = self.comm.gather(MPI.Get_processor_name())
        return self._identity() | {
            "ranks": self.comm.size,
            "config": json.dumps(self.config.tables()),
            "version": provenance.versions()["hpcopt"],
            "commit": provenance.commit(),
            "libraries": json.dumps(provenance.versions() | {"mpi": MPI.Get_library_version().split(",")[0]}),
            "hosts": json.dumps(sorted(set(hosts or []))),
            "slurm": json.dumps(provenance.slurm()),
            "device": f"{self.device} ({staging.description})",
            "end": "",
            "stopped_by": "",
        }

    def _job(self) -> dict[str, Any]:
        """This job's link in the run's chain of jobs."""
        return {
            "start": provenance.now(),
            "round": self.state.round,
            "ranks": self.comm.size,
            "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
            "slurm_restart": os.environ.get("SLURM_RESTART_COUNT", ""),
        }


def claim(directory: Path, config: RunConfig) -> None:
    """Makes a run's directory with its config.toml. Local, for rank 0.

    Raises:
        UserError: it holds a run already, or cannot be written.
    """
    if (directory / "run.h5").exists() or (directory / "checkpoints").exists():
        raise UserError(
            f"{directory}: already holds a run; go on with it by `hpcopt resume {directory}`, "
            "or choose another directory with --out"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory}: cannot be made ({error.strerror})") from None
    with files.replacing(directory / "config.toml") as partial:
        partial.write_text(dump(config), encoding="utf-8")


def _config_in_python(
    method: Method[Any], problem: Recipe, out: str | Path, settings: dict[str, Any]
) -> RunConfig:
    name = next((n for n, place in METHODS.items() if place.endswith(f":{type(method).__name__}")), None)
    if name is None:
        raise UserError(f"{type(method).__name__}: not a method of hpcopt; known: {', '.join(METHODS)}")
    run = {"method": name, "workers": problem.workers, "out": str(out)} | settings
    tables = {
        "run": run,
        "method": method.settings.model_dump(exclude_none=True),
        "problem": {"kind": IN_PYTHON, "recipe": type(problem).__name__},
    }
    return from_tables(tables, "hpcopt.run")


def _recipe(config: RunConfig) -> Recipe:
    kind, workers = config.problem.kind, config.run.workers
    if kind in PROBLEMS:
        return _load(PROBLEMS[kind]).from_table(config.problem, workers)
    return _load("hpcopt.problems.custom:from_table")(config.problem, workers)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
