"""What the launcher's environment says before MPI starts (starting MPI takes about a second)."""

from __future__ import annotations

import os

# variables with the number of ranks: Open MPI, MPICH and Intel MPI (Hydra), Slurm's srun
_SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")
# variables with the rank among those on the same node
_LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
# variables with the number of ranks on this node
_LOCAL_SIZE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")
LAUNCHER_PREFIXES = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "HYDRA_", "MPI_LOCAL")
HANDED_ON = ("USR1", "USR2")
"""signals that Open MPI's mpirun gives its ranks, and goes on"""


def expected_size() -> int:
    """How many ranks the launcher started; 1 without a launcher."""
    return _first(_SIZE, 1)


def expected_rank() -> int:
    """The rank that MPI will give this process; 0 without a launcher."""
    return _first(_RANK, 0) if expected_size() > 1 else 0


def local_rank() -> int:
    """This process's number among the ranks on its node; 0 without a launcher."""
    return _first(_LOCAL_RANK, 0)


def local_size() -> int:
    """How many ranks the launcher started on this node; 1 where nobody says."""
    if found := _first(_LOCAL_SIZE, 0):
        return found
    # Slurm: "2(x3),1" is 2 on each of three nodes and 1 on the next
    nodes: list[int] = []
    for part in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        tasks, _, times = part.rstrip(")").partition("(x")
        nodes += [int(tasks)] * int(times or 1) if tasks.isdecimal() else []
    node = _first(("SLURM_NODEID",), 0)
    return nodes[node] if node < len(nodes) else 1


def is_rank(environment: str) -> bool:
    """Whether a process with this environment is a rank: "NAME=value" with zeros between."""
    return any(entry.partition("=")[0] in _RANK for entry in environment.split("\0"))


def threads() -> int:
    """How many threads OMP_NUM_THREADS gives each rank: of a list, one for each level, the first; else 1."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return max(1, int(first)) if first.isdecimal() and len(first) < 6 else 1


def signal_seconds() -> float:
    """How long before the job's end its ranks are told to stop [s], as the batch script says; else ∞."""
    given = os.environ.get("HPCOPT_SIGNAL_SECONDS", "")
    return float(given) if given.isdecimal() else float("inf")


def ends_at_once(stop_signal: str = "USR1") -> str:
    """What a job loses that is stopped by other means than its signal, in words; nothing if that is not so.

    Open MPI's mpirun gives its ranks TERM and a quarter of a second later KILL, and no option changes that;
    in a Slurm job it gets another signal instead (`hpcopt.cluster.template`).
    """
    if (
        launcher_name() != "mpirun"
        or "OMPI_COMM_WORLD_SIZE" not in os.environ
        or "SLURM_JOB_ID" in os.environ
    ):
        return ""
    handed_on = stop_signal in HANDED_ON
    return (
        "Ctrl-C and TERM make mpirun kill the ranks at once, and what was computed since the last checkpoint "
        f"is lost; kill -{stop_signal} to {'mpirun' if handed_on else 'a rank'} makes them write one first"
    )


def launcher_name() -> str:
    """The launcher in words."""
    if "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ and "PRTE_LAUNCHED" not in os.environ:
        return "srun"
    if any(name in os.environ for name in _SIZE[:3]):
        return "mpirun"
    return "none (one rank)"


def without_launcher() -> dict[str, str]:
    """The environment for a subprocess that must not believe it is a rank of this job.

    The user's own settings of the MPI library stay.
    """
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(LAUNCHER_PREFIXES) or "_MCA_" in key or "ALLOW_RUN_AS_ROOT" in key
    }


def _first(names: tuple[str, ...], default: int) -> int:
    for name in names:
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    return default
