"""A site's settings: what differs from cluster to cluster and not from run to run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from hpcopt.cluster.words import Line
from hpcopt.config import check_table, parse
from hpcopt.config.base import Count, Table

# what the batch script says itself, or what would make another script of it
OWN = (
    *("account", "array", "chdir", "comment", "constraint", "cpus-per-task", "dependency", "gpus-per-node"),
    *("gpus-per-task", "help", "job-name", "kill-on-invalid-dep", "nodes", "no-requeue", "ntasks"),
    *("ntasks-per-node", "open-mode", "output", "parsable", "partition", "qos", "quiet", "requeue"),
    *("reservation", "signal", "test-only", "time", "usage", "version", "wait", "wrap"),
)


def _module(name: str) -> str:
    # jobs/env.sh splits the list at blanks, without quotes
    if not re.fullmatch(r"[A-Za-z0-9][\w.+@:/-]*", name, re.ASCII):
        raise ValueError("must be a module's name: letters, digits and . _ + @ : / -")
    return name


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name.startswith("SLURM_"):
        raise ValueError("must be a variable's name, and not one of Slurm's own")
    return name


def _option(text: str) -> str:
    found = re.fullmatch(r"--([a-z][a-z0-9-]*)(=.+)?", text)
    if found is None:
        raise ValueError('must look like "--key=value" or "--key"')
    # sbatch takes an option also by the beginning of its name
    taken = [name for name in OWN if name.startswith(found[1])]
    if taken:
        raise ValueError(f"--{taken[0]} is set by hpcopt submit or by another key of the profile")
    return text


class SiteProfile(Table):
    """One cluster, as one user uses it."""

    account: Line | None = None
    """whom the time is charged to"""
    partition: Line | None = None
    """the partition, or several with commas"""
    qos: Line | None = None
    """quality of service"""
    constraint: Line | None = None
    """features that nodes must have, for example "a100&nvlink" """
    reservation: Line | None = None
    """a reservation"""
    modules: list[Annotated[str, AfterValidator(_module)]] = Field(default=[])
    """modules to load, in this order"""
    launcher: Literal["srun", "mpirun"] = "srun"
    """what starts the ranks"""
    mpi: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")] = "pmix"
    """srun's --mpi; `srun --mpi=list` shows which there are"""
    interface: Annotated[str, Field(pattern=r"^[\w.@-]+(,[\w.@-]+)*$")] | None = None
    """network interface for MPI over TCP, for example "eth0" """
    environment: dict[Annotated[str, AfterValidator(_variable)], Line] = Field(default={})
    """variables to set before jobs/env.sh, as strings"""
    gpus_per_task: Annotated[int, Field(ge=0)] = 0
    """GPUs per rank; 0: the job asks for none"""
    signal_seconds: Annotated[int, Field(ge=1, le=65535)] = 120
    """how long before the time limit the ranks are told to write a checkpoint and stop [s]"""
    max_requeues: Annotated[int, Field(ge=0)] = 20
    """how often a job goes back into the queue by itself, whatever the cause"""
    max_retries: Count = 2
    """how often it does so after a failure without having got to a new checkpoint"""
    extra: list[Annotated[Line, AfterValidator(_option)]] = Field(default=[])
    """further options of sbatch, for example "--mem=0" """


def find(explicit: Path | None, config: Path) -> Path | None:
    """The profile's file: the one named, else site.toml beside the config, else the user's own, else none."""
    if explicit is not None:
        return explicit
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    places = (config.parent / "site.toml", home / "hpcopt" / "site.toml")
    return next((place for place in places if os.path.isfile(place)), None)


def load_profile(path: Path | None) -> SiteProfile:
    """Reads and checks a site's profile; the defaults without one.

    Raises:
        UserError: everything that is wrong, in one message.
    """
    return SiteProfile() if path is None else check_table(SiteProfile, parse(path), str(path))
