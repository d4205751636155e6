"""From a submission to its batch script: a pure function, every value checked or quoted."""

from __future__ import annotations

import shlex
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from hpcopt.cluster.profile import SiteProfile
from hpcopt.cluster.template import MPIRUN, SCRIPT, SRUN, BatchScript
from hpcopt.cluster.words import JobId, Line, Name, Time, array, directive, file_pattern, seconds
from hpcopt.config.base import Count, Table
from hpcopt.errors import UserError


def _absolute(path: str) -> str:
    # in --output a backslash switches placeholders off, so that %% would be two characters
    if not path.startswith("/") or "\\" in path:
        raise ValueError("must be an absolute path without backslashes")
    return path


Path = Annotated[Line, AfterValidator(_absolute)]


class Element(Table):
    """One task of a job array."""

    setting: Line
    """what differs: TABLE.KEY=VALUE"""
    directory: Path
    """its run's directory"""


class Submission(Table):
    """Everything that one batch script is made of, but for the site."""

    model_config = ConfigDict(alias_generator=lambda key: "--" + key.replace("_", "-"), populate_by_name=True)

    job_name: Name
    """the job's name"""
    directory: Path = Field(alias="--out")
    """the run's directory, or the one that holds the array's"""
    config: Path = Field(alias="CONFIG")
    """the config file"""
    settings: tuple[Line, ...] = Field(default=(), alias="--set")
    """--set's arguments"""
    nodes: Count
    """nodes"""
    ntasks_per_node: Count
    """ranks per node"""
    cpus_per_task: Count = 1
    """cores, and so threads, per rank"""
    time: Time
    """the time limit"""
    array: Annotated[tuple[Element, ...], Field(max_length=1000)] = ()
    """one run each"""
    after: tuple[JobId, ...] = ()
    """jobs that must have succeeded before"""
    workdir: Path
    """where relative paths begin"""
    env_file: Path | None = None
    """jobs/env.sh of the installation"""
    virtual_env: Path | None = None
    """without env_file: the virtual environment to activate"""

    @model_validator(mode="after")
    def _directories_differ(self) -> Submission:
        directories = [element.directory for element in self.array]
        twice = next((name for name in directories if directories.count(name) > 1), None)
        if twice:
            raise ValueError(f"--array: two values share the directory {twice}")
        return self


def render(request: Submission, profile: SiteProfile) -> str:
    """The batch script, as plain text that a user can read, edit and submit by hand.

    Raises:
        UserError: the time limit leaves no time before the signal.
    """
    if seconds(request.time) <= profile.signal_seconds:
        raise UserError(
            f"--time {request.time}: the ranks are told to stop signal_seconds = {profile.signal_seconds} s "
            "before the limit, which would be at once; ask for more time, or for less signal_seconds in the "
            "site's profile"
        )
    return SCRIPT.substitute(
        top=shlex.quote(request.directory),
        directives="\n".join(_directives(request, profile)),
        what="\n".join(_what(request)),
        max_requeues=profile.max_requeues,
        signal_seconds=profile.signal_seconds,
        max_retries=profile.max_retries,
        environment="\n".join(_environment(request, profile)),
        launch=_launch(request, profile),
    )


def _directives(request: Submission, profile: SiteProfile) -> list[str]:
    log = "slurm-%A_%a.out" if request.array else "slurm-%j.out"
    gpus = profile.gpus_per_task * request.ntasks_per_node
    shell_only = "B:" if profile.launcher == "mpirun" else ""  # see MPIRUN
    options = {
        "job-name": request.job_name,
        "comment": "hpcopt",  # by which `hpcopt jobs` knows it
        "nodes": str(request.nodes),
        "ntasks-per-node": str(request.ntasks_per_node),
        "cpus-per-task": str(request.cpus_per_task),
        "gpus-per-node": str(gpus) if gpus else None,
        "time": request.time,
        "account": profile.account,
        "partition": profile.partition,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "reservation": profile.reservation,
        "signal": f"{shell_only}USR1@{profile.signal_seconds}",
        "open-mode": "append",
        "chdir": request.workdir,
        "output": f"{file_pattern(request.directory)}/{log}",
        "array": f"0-{len(request.array) - 1}" if request.array else None,
        "dependency": f"afterok:{':'.join(request.after)}" if request.after else None,
        "kill-on-invalid-dep": "yes" if request.after else None,  # or it would wait for ever
    }
    lines = [directive(option, value) for option, value in options.items() if value is not None]
    extra = [directive(*option.removeprefix("--").split("=", 1)) for option in profile.extra]
    return [*lines, directive("requeue"), *extra]


def _what(request: Submission) -> list[str]:
    """Which run in which directory."""
    lines = [f"config={shlex.quote(request.config)}"]
    settings = array("settings", request.settings, before="--set ")
    if not request.array:
        return [*lines, f"directory={shlex.quote(request.directory)}", settings]
    return [
        *lines,
        array("values", (element.setting for element in request.array)),
        array("directories", (element.directory for element in request.array)),
        "directory=${directories[SLURM_ARRAY_TASK_ID]}",
        settings,
        'settings+=(--set "${values[SLURM_ARRAY_TASK_ID]}")',
    ]


def _environment(request: Submission, profile: SiteProfile) -> list[str]:
    variables: dict[str, str] = {}
    if profile.interface:
        # Open MPI's data and start-up connections (4 and 5), and torch's gloo
        names = ("OMPI_MCA_btl_tcp_if_include", "OMPI_MCA_oob_tcp_if_include", "PRTE_MCA_prte_if_include")
        variables |= dict.fromkeys((*names, "GLOO_SOCKET_IFNAME"), profile.interface)
    if profile.modules and request.env_file:
        variables["HPCOPT_MODULES"] = " ".join(profile.modules)  # jobs/env.sh loads them
    variables |= profile.environment
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    if request.env_file:
        return [*lines, f". {shlex.quote(request.env_file)}"]
    if profile.modules:
        lines.append(f"module load {' '.join(profile.modules)}")
    if request.virtual_env:
        lines.append(f". {shlex.quote(request.virtual_env + '/bin/activate')}")
    return lines


def _launch(request: Submission, profile: SiteProfile) -> str:
    if profile.launcher == "mpirun":
        # mpirun gives a rank one core unless told otherwise
        free = " --bind-to none" if request.cpus_per_task > 1 else ""
        return BatchScript(MPIRUN).substitute(tasks=request.ntasks_per_node, options=free)
    # every rank sees all GPUs of its node and takes the one with its local number; near cores of its own
    bound = " --cpu-bind=cores" if profile.gpus_per_task else ""
    return BatchScript(SRUN).substitute(mpi=profile.mpi, options=bound)
