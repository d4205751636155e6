"""One job of a run over MPI: checked, built, looped and released by all ranks in agreement."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mpi4py import MPI

from hpcopt.comm.beside.by_mail import ByMail
from hpcopt.comm.beside.route import Route
from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.mpi_ranks import MPIRanks
from hpcopt.comm.ports import Task
from hpcopt.comm.staging import Staging
from hpcopt.config import RunConfig
from hpcopt.config.problems import IN_PYTHON
from hpcopt.control.agree import agree, agreed, in_agreement
from hpcopt.control.crew import BUILD, OPEN, Crew
from hpcopt.control.launcher import ends_at_once, signal_seconds
from hpcopt.control.stopping import StopAgreement
from hpcopt.control.watchdog import Watchdog
from hpcopt.control.wishes import Stop
from hpcopt.control.world import together
from hpcopt.engine.assistance import assist
from hpcopt.engine.build import Built, attributes, begin, bind, cores, place, set_threads
from hpcopt.engine.determinism import repeatable
from hpcopt.engine.earlier import Earlier, array_of, fixed_of, tensors_of
from hpcopt.engine.loop import NOT_FINITE, SIGNAL, Run, loop, room
from hpcopt.engine.origin import check_config
from hpcopt.engine.own_metrics import Metric, load
from hpcopt.engine.record import Record, Recorder
from hpcopt.engine.reporter import Reporter
from hpcopt.engine.rundir import RunDirectory
from hpcopt.errors import Interrupted, NotFinite
from hpcopt.methods.base import Method
from hpcopt.problems.base import Recipe
from hpcopt.storage import provenance
from hpcopt.storage.state import pieces_of


def execute(
    comm: MPI.Comm,
    config: RunConfig,
    out: Path,
    method: Method[Any, Any],
    recipe: Recipe,
    metrics: Sequence[Metric | str] = (),
    *,
    resuming: bool = False,
) -> Path:
    """Runs a job from the first check to the last record; see `hpcopt.run`. Collective.

    Args:
        comm: all ranks of the job.
        config: the whole config.
        out: the run's directory.
        method: what to run.
        recipe: on which problem.
        metrics: the user's own functions, where they need not be imported.
        resuming: go on with what the directory holds.
    """
    with ExitStack() as opened, together(comm):
        watchdog = Watchdog(_name(comm), config.run.stall_seconds)
        opened.callback(watchdog.stop)
        check_config(MPIRanks(comm), config)  # what follows waits for ranks that it names
        misfit = config.run.misfit(comm.size)
        agree(comm, not misfit, f"[run] {misfit}")
        crew = Crew(comm, config.run.curvature_ranks)
        in_agreement(opened, crew.free)
        if crew.makes_rounds:
            directory = RunDirectory(crew.comm, out, config)
            crew.rounds(lambda: _execute(crew, directory, method, recipe, metrics, watchdog, resuming))
        else:
            assist(crew, config, method, recipe, watchdog.beat)
    return out / RunDirectory.METRICS


def _execute(
    crew: Crew,
    directory: RunDirectory,
    method: Method[Any, Any],
    recipe: Recipe,
    metrics: Sequence[Metric | str],
    watchdog: Watchdog,
    resuming: bool,
) -> None:
    """The job of the ranks that make the rounds."""
    comm, config = crew.comm, directory.config
    reporter = Reporter(directory.path, config.run.rounds, comm.rank == 0)
    with ExitStack() as opened, together(comm), repeatable(config.run):
        directory.checkpoints.check()
        if resuming and _already_finished(directory, reporter):
            return
        set_threads(config.run)
        with agreed(comm):
            own = load(config.run.metrics, metrics)
        opened.callback(directory.release)
        watchdog.beat("waiting for an earlier owner of the directory")
        if resuming:
            directory.own()
            if _already_finished(directory, reporter):  # by a job that ended while this one began
                return
        else:
            directory.claim()
        watchdog.listen(directory.signs(), comm.rank, comm.size)
        earlier = Earlier(directory, reporter, resuming)
        built = build(opened, crew, config, method, recipe, watchdog.beat, earlier.chosen)
        for note in method.notes():
            reporter.say(note)
        before = earlier.restore(built)
        for change in directory.write_config(built.state.round):
            reporter.say(change)
        watchdog.beat("the first evaluation")
        run = Run.of(built, own, before)
        first = run.measure()
        job = _open(opened, built, run.recorder, directory, reporter, watchdog, first)
        job.end(loop(run, first, job))


def build(
    opened: ExitStack,
    crew: Crew,
    config: RunConfig,
    method: Method[Any, Any],
    recipe: Recipe,
    beat: Callable[[str], None] = lambda where: None,
    chosen: Callable[[], Mapping[str, Any]] = dict,
) -> Built:
    """Problem, ports and method of a config, on all ranks, before the first round. Collective.

    Args:
        opened: frees the ports when it is closed.
        crew: of which this rank makes rounds.
        config, method, recipe: see `execute`.
        beat: is told what comes next.
        chosen: asked before the problem is built: what an earlier job chose by measuring.

    Raises:
        UserError: there is no such device, or the method's settings do not fit the problem.
    """
    comm, run = crew.comm, config.run
    ranks, everybody = MPIRanks(comm), MPIRanks(crew.everybody)
    remembered = chosen()
    beat("building the problem")
    crew.say(BUILD)
    placement = place(everybody, config, method, recipe, comm.size, comm.rank)
    problem = bind(everybody, placement, config, recipe)
    staging, like = Staging(problem.share.device), problem.initial()

    def by_mail(task: Task) -> ByMail:
        crew.say(OPEN)
        return ByMail(Route(crew.everybody, crew.rounders, task, staging, like), beat)

    reduction = "ordered" if run.deterministic else run.reduction
    ports = MPIPorts(
        comm, placement, staging, like, reduction, run.overlap, remembered, by_mail if crew.beside else None
    )
    in_agreement(opened, ports.free)
    device = f"{staging.device} ({staging.description})"
    places = everybody.each((MPI.Get_processor_name(), cores()))
    built = begin(ranks, config, problem, ports, method, device, beat, everybody)
    return replace(built, places=places)


class Job:
    """A run on its ranks, complete: what surrounds the loop.

    Args:
        built: what runs.
        recorder: counts what it costs.
        directory: open.
        reporter, watchdog, stopping: tell the user, look for progress, listen to signals.
        first: the record that the job begins with.
    """

    def __init__(
        self,
        built: Built,
        recorder: Recorder,
        directory: RunDirectory,
        reporter: Reporter,
        watchdog: Watchdog,
        stopping: StopAgreement,
        first: Record,
    ) -> None:
        self._built, self._recorder, self._directory = built, recorder, directory
        self._reporter, self._stopping, self._last = reporter, stopping, first
        self.beat, self.made = watchdog.beat, reporter.round
        self._lead, self._since = signal_seconds(), time.monotonic()

    def stop(self, round: int, late: bool, wish: int | None) -> Stop:
        """See `Host`."""
        self._warn(round)
        if late:
            self._stopping.ask(Stop.TIME)
        return self._stopping.poll(round) if wish is None else Stop(wish)

    def keep(self, record: Record) -> None:
        """See `Host`."""
        self._last = record
        self._directory.append(record)
        self._trace()
        self._reporter.record(record)
        self._directory.comm.Barrier()  # or the others' clocks would run while rank 0 writes

    def save(self) -> None:
        """See `Host`."""
        built, directory, round = self._built, self._directory, self._built.state.round
        self._trace()
        directory.flush()  # records and trace up to a checkpoint must outlive it
        meta = built.config.identity() | {
            "totals": asdict(self._recorder.costs.totals()),
            "chosen": built.ports.remembered,
            "model": built.method.model_field,
            "layout": asdict(built.problem.layout),
            "made_of": built.problem.made_of,
            "named": [place._replace(where=array_of(built, place.where)) for place in built.problem.named],
        }
        tensors = tensors_of(built) | fixed_of(built)
        path = directory.checkpoints.write(round, pieces_of(directory.comm, tensors), meta)
        self._reporter.event("checkpoint", round=round, path=str(path))
        directory.comm.Barrier()  # as in `keep`

    def _warn(self, round: int) -> None:
        """Says, once, that a round with all that follows it takes longer than the time after a signal."""
        now = time.monotonic()
        if now - self._since > self._lead:
            self._reporter.say(
                f"warning: round {round} took {now - self._since:.0f} s, but a signal comes {self._lead:g} s "
                "before the job's time limit, too late for a checkpoint: raise signal_seconds in the site's "
                "profile, or set run.checkpoint_every"
            )
            self._lead = math.inf
        self._since = now

    def _trace(self) -> None:
        """The run is at rest. Collective."""
        state = self._built.state
        self._directory.append_trace(state.round, self._built.method.trace(state))

    def end(self, reason: str) -> None:
        """Leaves the files as the reason asks. Collective.

        Raises:
            Interrupted: a signal came; `resume` goes on from the checkpoint just written.
            NotFinite: the loss is no number.
        """
        directory, reporter, round = self._directory, self._reporter, self._built.state.round
        if reason == SIGNAL:
            reporter.event("interrupted", round=round)
            raise Interrupted(
                f"stopped by a signal after round {round}; the checkpoint is written. "
                f"Go on with: {_go_on(directory)}"
            )
        directory.finish(reason, round)
        reporter.event("end", stopped_by=reason, round=round)
        if reason == NOT_FINITE:
            loss = self._last.get("metrics/loss", 0.0)
            what = f"the training loss is {loss}" if not math.isfinite(loss) else "the state is not finite"
            if not round:
                raise NotFinite(f"{what} at the start: are there such numbers in the data, or in the model?")
            raise NotFinite(
                f"{what} at round {round}; the metrics so far are in {directory.metrics}, checkpoints are of "
                "earlier rounds. A smaller learning rate or features of a smaller scale may help"
            )
        reporter.summary(self._last, directory.metrics)


def _go_on(directory: RunDirectory) -> str:
    """How to resume: a problem from Python is made there."""
    if directory.config.problem.kind == IN_PYTHON:
        return f"hpcopt.resume({str(directory.path)!r}, problem=…)"
    return f"hpcopt resume {directory.path}"


def _name(comm: MPI.Comm) -> str:
    return f"rank {comm.rank} of {comm.size} on {MPI.Get_processor_name()}"


def _already_finished(directory: RunDirectory, reporter: Reporter) -> bool:
    last = directory.finished_at()
    if last is not None:
        reporter.say(f"{directory.path}: already finished at round {last}")
    return last is not None


def _open(
    opened: ExitStack,
    built: Built,
    recorder: Recorder,
    directory: RunDirectory,
    reporter: Reporter,
    watchdog: Watchdog,
    first: Record,
) -> Job:
    """Opens run.h5 with room for every record, tells the user, and listens to signals. Collective."""
    in_agreement(opened, directory.close)
    in_agreement(opened, reporter.close)
    round = built.state.round
    about = attributes(built, MPI.Get_processor_name(), {"mpi": MPI.Get_library_version().split(",")[0]})
    about |= {"end": "", "stopped_by": ""}
    job = provenance.job() | {"round": round, "ranks": about["ranks"]}
    directory.open_metrics(recorder.schema(first, room(built.config.run)), round, about, job)
    reporter.start(job)
    if not built.config.run.checkpoint_every and (lost := ends_at_once(built.config.run.stop_signal)):
        reporter.say(f"run.checkpoint_every = 0: {lost}")
    stopping = StopAgreement(directory.comm, round, built.config.run.stop_signal)
    in_agreement(opened, stopping.close)
    built.ports.wish = stopping.wish
    return Job(built, recorder, directory, reporter, watchdog, stopping, first)
