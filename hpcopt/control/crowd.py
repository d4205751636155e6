"""Where ranks are more than cores, those that wait must not keep a core busy that another one needs.

MPI libraries wait by asking again and again. Whether they give their core away in between is told by the
environment, which they read when they start: `give_way` is to be called before.
"""

from __future__ import annotations

import os
from pathlib import Path

from hpcopt.control.launcher import is_rank, local_size

YIELDING = {
    "Open MPI": ("OMPI_MCA_mpi_yield_when_idle", "1"),
    "Intel": ("I_MPI_THREAD_YIELD", "2"),
    "MPICH": ("MPIR_CVAR_POLLS_BEFORE_YIELD", "1"),
}
"""of each library, the variable and its value"""
PROC = Path("/proc")


def give_way() -> None:
    """Has MPI yield while it waits, where ranks are more than cores, unless the user said how. Local."""
    ranks = local_size()
    if ranks > 1 and ranks > cores():
        for name, value in YIELDING.values():
            os.environ.setdefault(name, value)


def gives_way(library: str) -> bool:
    """Whether an MPI library, by what it says of itself, is told to."""
    name, _ = next((of for known, of in YIELDING.items() if known in library), YIELDING["MPICH"])
    return os.environ.get(name, "0") != "0"


def cores() -> int:
    """How many cores the ranks on this node have together. Local.

    A rank may be bound to one of them, and so may a shell around it: whoever started them has all.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    found = os.sched_getaffinity(0) | _of_launcher()
    of_job = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return min(len(found), int(of_job)) if of_job.isdecimal() else len(found)


def _of_launcher() -> set[int]:
    """The cores of the nearest process above this one that is none of the job's ranks."""
    pid = os.getppid()
    try:
        while is_rank((PROC / str(pid) / "environ").read_bytes().decode(errors="replace")):
            pid = int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it is another user's: Slurm's
        pass
    try:
        return os.sched_getaffinity(pid)
    except OSError:
        return set()
