"""A sweep: many runs in one job, on groups of its ranks; a group that is free takes the next case."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mpi4py import MPI

from hpcopt.config import RunConfig
from hpcopt.config.sweep import Case, Plan
from hpcopt.control import last_words, signals
from hpcopt.control.agree import agree, agree_same, agreed
from hpcopt.control.groups import groups, meet, split
from hpcopt.control.world import together
from hpcopt.engine.as_alone import Surroundings, quiet
from hpcopt.engine.reporter import Reporter
from hpcopt.engine.sweep_directory import DONE, FAILED, OPEN, Failure, SweepDirectory
from hpcopt.engine.sweep_words import beginning, first_line, table
from hpcopt.errors import Failed, HpcoptError, Interrupted
from hpcopt.ground.words import counted, there_are

ASK_SECONDS = 0.5
"""between two looks whether another group was told to stop"""

RunCase = Callable[[MPI.Comm, Callable[[], RunConfig], Path], object]


@dataclass(frozen=True)
class Job:
    """What the ranks of a job have in common.

    Attributes:
        directory, plan, reporter: of the sweep.
        todo: the numbers of the cases that are to be run, or gone on with.
        run: runs a case, or goes on with it, on the ranks of a communicator. Collective.
    """

    directory: SweepDirectory
    plan: Plan
    reporter: Reporter
    todo: Sequence[int]
    run: RunCase


def sweep(
    comm: MPI.Comm,
    plan: Plan,
    out: Path,
    run: RunCase,
    ranks_each: int = 1,
    at_once: int | None = None,
    retry: bool = False,
) -> None:
    """Runs all cases of a plan that are not done. Collective; the caller has checked the cases.

    Args:
        comm: all ranks of the job.
        plan: what to run.
        out: the sweep's directory; one that holds a part of this plan is gone on with.
        run: see `Job`.
        ranks_each: ranks of each case's group.
        at_once: groups at most.
        retry: run failed cases again.

    Raises:
        UserError: there are too few ranks, or the directory cannot be used.
        Interrupted: a signal came; the same call goes on.
        HpcoptError: cases have failed, with a table of them.
    """
    with ExitStack() as opened, together(comm):
        agree_same(comm, repr(plan), "the ranks have read different configs")
        too_few = f"--ranks-each {ranks_each}: {there_are(comm.size, 'rank')} only"
        agree(comm, ranks_each <= comm.size, too_few)
        every = groups(comm.allgather(MPI.Get_processor_name()), ranks_each, at_once)
        directory = SweepDirectory(out, plan)
        opened.callback(directory.release)
        states = _open(comm, directory)
        todo = [n for n, state in enumerate(states) if state == OPEN or (retry and state == FAILED)]
        reporter = Reporter(out, len(states), active=True)
        if comm.rank == 0:
            reporter.say(beginning(states, len(todo), every, comm.size))
        ended = _on_groups(comm, every, Job(directory, plan, reporter, todo, run))
        _end(comm, directory, plan, states, dict(ended))
        if comm.rank == 0:
            reporter.say(f"{counted(len(states), 'case')} done: {out}")
            reporter.event("end", done=len(states))


def _open(comm: MPI.Comm, directory: SweepDirectory) -> list[str]:
    """The states of all cases. Collective; rank 0 owns the directory from then on."""
    states: list[str] = []
    token = ""
    with agreed(comm):
        if comm.rank == 0:
            token = directory.open()
            states = [directory.state(case) for case in directory.plan.cases]
    token, states = comm.bcast((token, states))
    with agreed(comm):
        directory.join(token)
    return states


def _on_groups(comm: MPI.Comm, every: list[list[int]], job: Job) -> list[tuple[int, int]]:
    """The numbers of the cases that ended in this job with their exit codes, on every rank. Collective."""
    group = split(comm, every)
    mine: list[tuple[int, int]] = []
    if group is not None:
        with quiet(), signals.heard(_Asked(job.directory)):
            mine = _work(group, job)
        if group.rank:
            mine = []  # its first rank tells
        group.Free()
    meet(comm)
    return [pair for pairs in comm.allgather(mine) for pair in pairs]


def _work(group: MPI.Comm, job: Job) -> list[tuple[int, int]]:
    """Takes cases until there are none, or the job is told to stop. Collective over the group."""
    ended: list[tuple[int, int]] = []
    left = iter(job.todo)
    surroundings = Surroundings()
    while (number := _next(group, job, left)) is not None:
        case, since = job.plan.cases[number], time.monotonic()
        surroundings.restore()
        failure = _run(group, job, case)
        code = failure.code if failure else 0
        ended.append((number, code))
        with agreed(group):
            if group.rank == 0:
                _note(job, number, failure, time.monotonic() - since)
        if code == Interrupted.exit_code:
            break
    return ended


def _next(group: MPI.Comm, job: Job, left: Iterator[int]) -> int | None:
    """The next case that no group has taken; None: no more. Collective over the group."""
    number = None
    with agreed(group):
        if group.rank == 0 and signals.received():
            job.directory.stop()
        elif group.rank == 0:
            number = next((number for number in left if job.directory.claim(number)), None)
    found: int | None = group.bcast(number)
    return found


def _run(group: MPI.Comm, job: Job, case: Case) -> Failure | None:
    """Runs a case; how it failed, the same on every rank. Collective over the group.

    What the ranks do not come to together ends the whole job: those who wait for them would do so for ever.
    """
    path = job.directory.run(case)
    # of its own, for a case that fails may leave messages behind
    comm = group.Dup()

    def lost(code: int, message: str) -> None:
        job.directory.failed(case, Failure(code, message, comm.size))

    failure = None
    try:
        with last_words.heard(f"case {case.name}", lost), together(comm):
            job.run(comm, lambda: job.plan.config(case, path), path)
    except HpcoptError as error:
        trace = error.traceback if isinstance(error, Failed) else ""
        failure = Failure(error.exit_code, str(error), comm.size, trace)
    comm.Free()
    return failure


def _note(job: Job, number: int, failure: Failure | None, seconds: float) -> None:
    """Writes down how a case ended, and tells it. On the first rank of the group."""
    case, directory = job.plan.cases[number], job.directory
    if failure is not None and failure.code == Interrupted.exit_code:
        directory.stop()
        return job.reporter.say(f"{case.name}: stopped by a signal; the checkpoint is written")
    if failure is None:
        directory.succeeded(case)
    else:
        directory.failed(case, failure)
    ended = len(job.plan.cases) - len(job.todo) + directory.ended(number)
    how = f"exit code {failure.code}: {first_line(failure.message)}" if failure else f"{seconds:.1f} s"
    told = f"[{ended}/{len(job.plan.cases)}] {case.name}: {how}"
    job.reporter.say(f"{told}\n{failure.traceback.rstrip()}" if failure and failure.traceback else told)


def _end(
    comm: MPI.Comm, directory: SweepDirectory, plan: Plan, states: list[str], ended: dict[int, int]
) -> None:
    """Raises what the job comes to where not all is done. Collective; see `sweep`."""
    for number, code in ended.items():
        states[number] = {0: DONE, Interrupted.exit_code: OPEN}.get(code, FAILED)
    told = ""
    if comm.rank == 0:
        directory.close()
        failures = [case for case, state in zip(plan.cases, states, strict=True) if state == FAILED]
        told = table(directory, failures)
    done, failed, total = states.count(DONE), states.count(FAILED), len(states)
    if OPEN in states:
        also = f", {failed} failed" if failed else ""
        raise Interrupted(
            f"stopped by a signal; {done} of {total} cases are done{also}. The same command goes on"
        )
    if failed:
        raise HpcoptError(f"{failed} of {total} cases failed; --retry runs them again\n{comm.bcast(told)}")


class _Asked:
    """Whether another group was told to stop: signals may come to some ranks of a job only."""

    def __init__(self, directory: SweepDirectory) -> None:
        self._directory, self._looked, self._found = directory, time.monotonic(), False

    def __call__(self) -> bool:
        if not self._found and time.monotonic() - self._looked > ASK_SECONDS:
            self._looked, self._found = time.monotonic(), self._directory.stops()
        return self._found
