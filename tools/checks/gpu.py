"""The ranks of tools/gpu_check: ports and runs on a device against the same on the CPU in one process.

    [mpirun -n 4] python tools/checks/gpu.py cuda|cpu DIRECTORY

On one rank, on two and on all; those that have nothing to do sleep. On a GPU by every way that its tensors
may take to MPI; without one by the same ways, rehearsed in ordinary memory, and as little as covers all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from mpi4py import MPI

from hpcopt.comm.rehearsal import Rehearsal
from hpcopt.comm.staging import Staging, cuda_aware, local_device
from hpcopt.control.launcher import local_rank
from hpcopt.control.world import world
from hpcopt.ground.words import counted
from tools.checks.gpu_common import HEAD, Outcome, asleep
from tools.checks.gpu_ports import CHECKS, Check, check_neighbours, check_plans
from tools.checks.gpu_runs import Runs
from tools.checks.gpu_speed import rounds, selection


class Checks:
    """Counts what is wrong and prints a line of each.

    Args:
        device: where the tensors are.
        folder: for the runs' directories.
    """

    def __init__(self, device: torch.device, folder: Path) -> None:
        self._device, self._folder = device, folder
        self._rehearses = device.type == "cpu"
        self.wrong, self._prints = 0, False

    def on(self, comm: MPI.Comm) -> None:
        """Ports by every way of tensors to MPI, and runs. Collective."""
        self._prints = comm.rank == 0
        for staging in self._stagings():
            checks = self._checks(comm, staging)
            if checks:
                self._title(f"{staging.device}: {staging.description}; {counted(comm.size, 'rank')}")
            for check in checks:
                check(comm, staging, self.report)
            if not self._rehearses:
                with _aware(staging.direct):
                    self._runs(comm, f"{comm.size}-{staging.direct}", every=True)
        if self._rehearses:
            self._title(f"{self._device}: runs; {counted(comm.size, 'rank')}")
            self._runs(comm, str(comm.size), every=comm.size == 2)

    def speeds(self) -> None:
        """What one rank does by itself. Local."""
        self._prints = True
        self._title(f"{self._device}: {_called(self._device)}; speeds, each beside what it is compared with")
        selection(self._device, self.report)
        rounds(self._device, self.report, self._folder / "speeds")

    def report(self, outcome: Outcome) -> None:
        """Prints a line."""
        self.wrong += not outcome.right
        if self._prints:
            print(outcome, flush=True)

    def _runs(self, comm: MPI.Comm, where: str, every: bool) -> None:
        runs = Runs(comm, self._device.type, self.report, self._folder / where)
        if every:
            runs.methods()
            runs.across()
            runs.memory()
        if comm.size != 2 or not self._rehearses:
            runs.deterministic()

    def _checks(self, comm: MPI.Comm, staging: Staging) -> Sequence[Check]:
        """Those of the ports; of a rehearsal only what differs."""
        if not self._rehearses or (comm.size == 2 and not staging.direct):
            return CHECKS
        if comm.size == 2:
            return check_plans, check_neighbours
        return (check_plans,) if comm.size > 2 and staging.direct else ()

    def _stagings(self) -> list[Staging]:
        """Staged, and direct where that is possible."""
        if self._rehearses:
            return [Rehearsal(self._device, aware=False), Rehearsal(self._device, aware=True)]
        return [Staging(self._device, aware=False)] + [Staging(self._device, aware=True)] * cuda_aware()

    def _title(self, text: str) -> None:
        if self._prints:
            print(f"\n{text}; {os.uname().nodename}\n{HEAD}", flush=True)


@contextmanager
def _aware(direct: bool) -> Iterator[None]:
    """Runs within go this way."""
    before = os.environ.get("HPCOPT_CUDA_AWARE")
    os.environ["HPCOPT_CUDA_AWARE"] = str(int(direct))
    try:
        yield
    finally:
        os.environ.pop("HPCOPT_CUDA_AWARE")
        if before is not None:
            os.environ["HPCOPT_CUDA_AWARE"] = before


def _called(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a rehearsal, no measurement"


def main() -> int:
    """Runs all checks; 1 if anything is wrong. Collective."""
    comm = world()
    torch.set_num_threads(1)
    check = Checks(local_device(sys.argv[1], local_rank()), Path(sys.argv[2]))
    for ranks in sorted({1, min(2, comm.size), comm.size}):
        part = comm.Split(0 if comm.rank < ranks else MPI.UNDEFINED)
        if part != MPI.COMM_NULL:
            check.on(part)
            part.Free()
        asleep(comm)
    if comm.rank == 0:
        check.speeds()
    asleep(comm)
    return int(check.wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
