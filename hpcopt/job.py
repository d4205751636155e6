"""One job: built on all ranks in agreement, then the one loop."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI

from hpcopt.comm.agree import agree, agree_same, agreed
from hpcopt.comm.launcher import local_rank
from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.staging import Staging, local_device
from hpcopt.comm.stopping import Stop, StopAgreement
from hpcopt.comm.watchdog import Watchdog
from hpcopt.config import RunConfig
from hpcopt.errors import HpcoptError, Interrupted, NotFinite, UserError
from hpcopt.methods.base import Held, Method
from hpcopt.placement import Placement
from hpcopt.problems.base import Problem, Recipe, Share
from hpcopt.progress import Reporter
from hpcopt.record import Clock, Recorder, Totals
from hpcopt.rundir import RunDirectory
from hpcopt.storage import format, provenance
from hpcopt.storage.state import check_fits, pieces_of, restore

BUFFERS = "problem_buffers"


class Job:
    """One job of a run: built on all ranks in agreement, then looped.

    Args:
        comm: all ranks of the job.
        config: the whole config.
        out: the run's directory.
        method: what to run.
        recipe: on which problem.
        resuming: go on with what the directory holds.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        config: RunConfig,
        out: Path,
        method: Method[Any, Any],
        recipe: Recipe,
        resuming: bool = False,
    ) -> None:
        self.comm, self.config, self._resuming = comm, config, resuming
        self.method, self._recipe = method, recipe
        self.directory = RunDirectory(comm, out, config)
        self.reporter = Reporter(out, config.run.rounds, comm.rank == 0)
        self.ports: MPIPorts
        self.stopping: StopAgreement | None = None

    def execute(self) -> Path:
        """Builds, loops, finishes; see `run`."""
        name = f"rank {self.comm.rank} of {self.comm.size} on {MPI.Get_processor_name()}"
        self._watchdog = Watchdog(name, self.config.run.stall_seconds)
        try:
            if not self._already_finished():
                self._build()
                self._begin()
                self._finish(self._loop())
        except HpcoptError:  # raised on every rank at the same place
            self._release()
            raise
        finally:
            self._watchdog.stop()
        self._release()
        return self.directory.metrics

    # --- building ----------------------------------------------------------------------------------

    def _already_finished(self) -> bool:
        """Checks the numbers and the directory, before anything expensive."""
        workers, ranks = self.config.run.workers, self.comm.size
        agree(
            self.comm,
            ranks <= workers,
            f"[run] workers = {workers}, but there are {ranks} ranks; every rank hosts at least one worker: "
            f"start at most {workers} ranks or set run.workers to at least {ranks}",
        )
        last = self.directory.finished_at() if self._resuming else None
        if last is not None:
            self.reporter.say(f"{self.directory.path}: already finished at round {last}")
        return last is not None

    def _build(self) -> None:
        run = self.config.run
        torch.set_num_threads(1 if run.deterministic else int(os.environ.get("OMP_NUM_THREADS", "1")))
        if not self._resuming:
            self.directory.claim()
        self._watchdog.beat("building the problem")
        with agreed(self.comm):
            device = local_device(run.device, local_rank())
            self.problem: Problem = self._bind(device)
        self._check_start()
        staging = Staging(device)
        found = self._find_checkpoint() if self._resuming else None
        self.ports = MPIPorts(
            self.comm,
            self._placement,
            staging,
            self.problem.initial(),
            "ordered" if run.deterministic else run.reduction,
            run.overlap,
            remembered=found[1]["chosen"] if found is not None else {},
        )
        self._settle(self.ports)
        self._watchdog.beat("the method's start")
        with agreed(self.comm):
            self.method.prepare(self.problem)
        self.state = self.method.start(self.problem, self.ports)
        for note in self.method.notes():
            self.reporter.say(note)
        before = self._restore(*found) if found is not None else None
        self.directory.write_config()
        self.clock = Clock(device)
        self.recorder = Recorder(self.comm, self.problem, self.method, self.ports, self.clock, before)
        self._about = self._describe(staging)

    def _bind(self, device: torch.device) -> Problem:
        run = self.config.run
        self._placement = Placement.even(run.workers, self.comm.size, self.comm.rank)
        dtype = {"float32": torch.float32, "float64": torch.float64}[run.dtype or "float64"]
        return self._recipe.bind(Share(self._placement.here, run.workers, run.seed, dtype, device))

    def _check_start(self) -> None:
        """A user's factory may build another start on every rank, and nothing would be right after that."""
        agree_same(
            self.comm,
            format.digest(self.problem.initial().cpu().numpy()),
            f"[problem] kind = {self.config.problem.kind!r}: the ranks begin with different parameters; seed "
            "whatever is random where the model is built (torch.manual_seed)",
        )

    def _settle(self, ports: MPIPorts) -> None:
        """Gives the problem the sum of its statistics over all workers; costs no metric anything."""
        rows = self.problem.statistics()
        if rows is not None:
            reducer = ports.reducer()
            self.problem.settle(reducer.sum(rows))
            reducer.free()

    def _find_checkpoint(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest intact checkpoint of this very run; None where there is none yet."""
        found = self.directory.checkpoints.newest()
        if found is None:
            self.reporter.say(f"{self.directory.path}: no checkpoint yet, starting from round 0")
            return None
        path, meta, warnings = found
        for warning in warnings:
            self.reporter.say(f"warning: {warning}")
        for key, mine in self.config.identity().items():
            if meta[key] != mine:
                raise UserError(
                    f"{path}: was written with {key} = {meta[key]!r}, but the config says {mine!r}"
                )
        return path, meta

    def _restore(self, path: Path, meta: dict[str, Any]) -> Totals:
        """Takes a checkpoint over; gives what the run cost until then."""
        if tuple(meta["layout"]["names"]) != self.problem.layout.names:
            raise UserError(
                f"{path}: holds other parameters than the problem has now, or in another order (private ones "
                "are last): the model or problem.private has changed; start another run"
            )
        tensors = self._tensors()
        check_fits(self.comm, path, meta, tensors)
        restore(self.comm, path, tensors)
        self.state.round = meta["round"]
        self.reporter.say(f"{path}: going on from round {self.state.round}")
        return Totals(**meta["totals"])

    # --- looping -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Evaluates the start, and opens run.h5; a new run's first record is that of round 0."""
        self._watchdog.beat("the first evaluation")
        self._last = self.recorder.record(self.state.round, self.state)
        schema = self.recorder.schema(self._last)
        job = provenance.job() | {"round": self.state.round, "ranks": self.comm.size}
        self.directory.open_metrics(schema, self.state.round, self._about, job)
        self.reporter.start(job)
        if self.state.round == 0:
            self._append()

    def _loop(self) -> str:
        """The one loop. Gives the reason why the run is over."""
        run = self.config.run
        self.stopping = StopAgreement(self.comm, self.state.round)
        ended = self._ended(False, Stop.NO) or self._target()
        if ended and self.state.round == 0:
            self._checkpoint()
        while not ended:
            self._watchdog.beat(f"round {self.state.round + 1}")
            self.clock.start()
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

    def _record(self) -> None:
        self.clock.pause()
        self._watchdog.beat(f"the evaluation after round {self.state.round}")
        self._last = self.recorder.record(self.state.round, self.state)
        self._append()

    def _append(self) -> None:
        self.directory.append(self._last)
        self.reporter.record(self._last)
        loss = self._last["metrics/loss"]
        if not math.isfinite(loss):
            self._close("not finite")
            raise NotFinite(
                f"the training loss is {loss} at round {self.state.round}; the metrics so far are in "
                f"{self.directory.metrics}. A smaller learning rate may help"
            )

    def _checkpoint(self) -> None:
        self.clock.pause()
        self._watchdog.beat(f"the checkpoint of round {self.state.round}")
        self.directory.flush()  # records up to a checkpoint must outlive it
        meta = self.config.identity() | {
            "totals": asdict(self.recorder.totals()),
            "chosen": self.ports.chosen,
            "model": self.method.model_field,
            "layout": asdict(self.problem.layout),
        }
        pieces = pieces_of(self.comm, self._tensors())
        path = self.directory.checkpoints.write(self.state.round, pieces, meta)
        self.reporter.event("checkpoint", round=self.state.round, path=str(path))

    # --- ending ------------------------------------------------------------------------------------

    def _interrupt(self) -> None:
        """Everything is left so that `resume` goes on from the checkpoint just written."""
        self.reporter.event("interrupted", round=self.state.round)
        raise Interrupted(
            f"stopped by a signal after round {self.state.round}; the checkpoint is written. "
            f"Go on with: hpcopt resume {self.directory.path}"
        )

    def _finish(self, stopped_by: str) -> None:
        self._close(stopped_by)
        self.reporter.summary(self._last, self.directory.metrics)

    def _close(self, stopped_by: str) -> None:
        self.directory.finish(stopped_by, self.state.round)
        self.reporter.event("end", stopped_by=stopped_by, round=self.state.round)

    def _release(self) -> None:
        """Gives back what was opened, as far as it was. Collective."""
        self.directory.close()
        self.reporter.close()
        if self.stopping is not None:
            self.stopping.close()
        if hasattr(self, "ports"):
            self.ports.free()

    # --- describing --------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, tuple[Held, torch.Tensor]]:
        """Everything that a checkpoint holds."""
        return self.state.tensors() | {BUFFERS: (Held.PER_WORKER, self.problem.buffers)}

    def _describe(self, staging: Staging) -> dict[str, Any]:
        """The root attributes of run.h5. Collective."""
        hosts = self.comm.gather(MPI.Get_processor_name())
        return (
            self.config.identity()
            | provenance.software({"mpi": MPI.Get_library_version().split(",")[0]})
            | {
                "ranks": self.comm.size,
                "hosts": json.dumps(sorted(set(hosts or []))),
                "config": json.dumps(self.config.tables()),
                "chosen": json.dumps(self.ports.chosen),
                "notes": "\n".join(self.method.notes()),
                "device": f"{staging.device} ({staging.description})",
                "end": "",
                "stopped_by": "",
            }
        )
