"""The examination: one probe after the other, on all ranks in step, none for longer than its patience."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpcopt.control.launcher import expected_rank
from hpcopt.doctor.finding import Finding, Grade, Probe, Row, Where, fails, note, ok, warning, worst
from hpcopt.doctor.guardian import Guardian, Timer
from hpcopt.ground.terminal import forgiving

if TYPE_CHECKING:
    from mpi4py import MPI

MPI_NAME, MPI_SECONDS = "MPI", 20.0
_NO_MPI = 'pip install "hpcopt[run]" and an MPI library, or load the cluster\'s MPI module (HPCOPT_MODULES)'
_MPI_ENDS = (
    "MPI does not start here: on a login node run this as a job (srun -n 2 hpcopt doctor); in a job try "
    "another srun --mpi=… (srun --mpi=list), and one MPI for both mpirun and mpi4py"
)


def scratch_path() -> Path:
    """Where this process's probes write: in the current directory, since runs will be there too."""
    return Path.cwd() / f".hpcopt-doctor-{socket.gethostname()}-{os.getpid()}"


class Examination:
    """Starts MPI, runs probes, shows the rows on rank 0.

    Args:
        render: makes the output from the rows.
        seconds: all of it ends by then.
    """

    def __init__(self, render: Callable[[list[Row]], str], seconds: float) -> None:
        self._render = render
        self._end = time.monotonic() + seconds
        self._rows: list[Row] = []
        self._ahead: list[str] = []
        self._comm: MPI.Comm | None = None
        self._hosts = [socket.gethostname()]
        self._first = expected_rank() == 0
        self._guardian = Guardian(scratch_path()) if self._first else None
        self._timer = Timer(self._first)

    def examine(self, choose: Callable[[MPI.Comm | None], Sequence[Probe]]) -> bool:
        """Does all of it. Collective.

        Args:
            choose: gives the probes once the communicator is known (None: there is no MPI).

        Returns:
            Whether nothing essential failed; the same on every rank.
        """
        self._rows.append(Row(MPI_NAME, self._start_mpi()))
        probes = list(choose(self._comm))
        for at, probe in enumerate(probes):
            self._ahead = [later.name for later in probes[at + 1 :]]
            self._rows.append(Row(probe.name, self._perform(probe)))
        self._timer.close()
        if self._guardian is not None:
            self._guardian.dismiss()
            forgiving(sys.stdout).write(self._render(self._rows))
        return all(row.finding.grade < Grade.FAILS for row in self._rows)

    def _start_mpi(self) -> Finding:
        self._await(MPI_NAME, MPI_SECONDS, _MPI_ENDS)
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            return fails(f"mpi4py: {error}", _NO_MPI)
        from hpcopt.control.world import world

        comm = world()
        self._comm = comm.Dup()  # a probe that goes wrong must not disturb what the ranks agree on
        self._hosts = comm.allgather(self._hosts[0])
        self._settle_first(comm)
        level = MPI.Query_thread()
        name = {MPI.THREAD_MULTIPLE: "multiple", MPI.THREAD_SERIALIZED: "serialized"}.get(level, "funneled")
        library = MPI.Get_library_version().split(",")[0].split("\n")[0].strip("\0 ")
        result = f"{library} (MPI {MPI.Get_version()[0]}.{MPI.Get_version()[1]}), thread level {name}"
        if level == MPI.THREAD_MULTIPLE:
            return ok(result)
        return warning(result, "no progress threads for one-sided messages; use an MPI with THREAD_MULTIPLE")

    def _settle_first(self, comm: MPI.Comm) -> None:
        """Who is first was the launcher's word so far; where MPI knows better, it counts."""
        self._first = comm.rank == 0 if comm.size > 1 else self._first
        if self._guardian is not None and not self._first:
            self._guardian.dismiss()
            self._guardian = None

    def _perform(self, probe: Probe) -> Finding:
        if self._comm is None and probe.where is Where.TOGETHER:
            return note("not tried: it needs MPI")
        self._await(probe.name, probe.seconds, probe.remedy)
        finding = self._try(probe) if self._first or probe.where is not Where.FIRST else None
        # this rank is through; should others now be stuck, it tells what may be the reason
        self._timer.message = ""
        if finding is not None and finding.grade >= Grade.FAILS:
            self._timer.message = f"hpcopt doctor: {self._me()} failed in: {probe.name}: {finding.result}"
        return self._agree(finding)

    def _try(self, probe: Probe) -> Finding:
        try:
            if probe.where is not Where.TOGETHER:
                return probe.run()
            assert self._comm is not None
            # never freed: after a probe that went wrong on some ranks, Free might not come back
            return probe.run(self._comm.Dup())
        except Exception as error:
            return fails(f"{type(error).__name__}: {error}", probe.remedy)

    def _agree(self, finding: Finding | None) -> Finding:
        """The worst finding of all ranks, on all ranks; nobody goes on before everybody is here."""
        if self._comm is None or self._comm.size == 1:
            return finding or note("tried by rank 0 only")
        findings = self._comm.gather(finding)
        merged = worst(findings, self._hosts) if findings is not None else None
        agreed: Finding = self._comm.bcast(merged)
        return agreed

    def _await(self, name: str, seconds: float, remedy: str) -> None:
        """From here on, the probe of this name has so long before the whole job ends."""
        seconds = min(seconds, max(1.0, self._end - time.monotonic()))
        if self._guardian is not None:
            late = Finding(Grade.HANGS, f"no answer within {seconds:.0f} s; the job was ended", remedy)
            dead = fails("a rank crashed or was ended from outside, and the job with it", remedy)
            # by then the ranks that are stuck have said so on stderr
            self._guardian.expect(seconds + 0.5, self._story(name, late), self._story(name, dead))
        self._timer.start(seconds, f"hpcopt doctor: {self._me()} is stuck in: {name}")

    def _me(self) -> str:
        rank = self._comm.rank if self._comm is not None else expected_rank()
        return f"rank {rank} on {socket.gethostname()}"

    def _story(self, name: str, finding: Finding) -> str:
        """The output if the probe of this name ends like this."""
        untried = [Row(later, note("not tried")) for later in self._ahead]
        return self._render([*self._rows, Row(name, finding), *untried])
