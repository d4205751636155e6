"""Where a result came from: versions, commit, machines, Slurm. Local; reads files, starts no process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from hpcopt.ground.stamps import now

LIBRARIES = ("numpy", "h5py", "mpi4py", "torch", "scipy", "xarray")


@cache  # reading them takes a fifth of the time of a run of a few rounds
def versions() -> Mapping[str, str]:
    """hpcopt's, Python's and the libraries' versions."""
    found = {"python": sys.version.split()[0], "hpcopt": metadata.version("hpcopt")}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return MappingProxyType(found)


def software(more: dict[str, str]) -> dict[str, str]:
    """Versions, commit and Slurm's variables as attributes; ``more`` are further libraries' versions."""
    return {
        "version": versions()["hpcopt"],
        "commit": commit(),
        "libraries": json.dumps({**versions(), **more}),
        "slurm": json.dumps(slurm()),
    }


def commit() -> str:
    """The git commit of the package's source tree; empty where it is not in one."""
    root = common = Path(__file__).resolve().parents[2] / ".git"
    try:
        if root.is_file():  # a worktree: its own HEAD, and branches in the repository that it belongs to
            root = root.parent / root.read_text().removeprefix("gitdir:").strip()
            common = root / (root / "commondir").read_text().strip()
        head = (root / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (common / name).is_file():
            return (common / name).read_text().strip()
        packed = (common / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(" " + name)), "")
    except OSError:
        return ""


def slurm() -> dict[str, str]:
    """Slurm's variables about this job, without anything that could be secret."""
    wanted = ("JOB_", "CLUSTER_NAME", "NNODES", "NTASKS", "NODELIST", "RESTART_COUNT", "ARRAY_", "CPUS_PER")
    return {
        key: value
        for key, value in sorted(os.environ.items())
        if key.startswith("SLURM_") and key.removeprefix("SLURM_").startswith(wanted)
    }


def job() -> dict[str, str]:
    """What tells one job of a run's chain from the next."""
    return {
        "start": now(),
        "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
        "slurm_restart": os.environ.get("SLURM_RESTART_COUNT", ""),
    }
