"""From a submission to its batch script: a pure function, every value checked or quoted."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from hpcopt.cluster.profile import SiteProfile
from hpcopt.cluster.template import ITSELF, MPIRUN, ONE_RUN, SCRIPT, SRUN, SWEEP, BatchScript
from hpcopt.cluster.words import JobId, Line, Name, Time, array, directive, file_pattern, seconds
from hpcopt.config.base import Count, Table
from hpcopt.config.run import StopSignal
from hpcopt.config.values import MOST
from hpcopt.control.launcher import HANDED_ON
from hpcopt.errors import UserError


def _absolute(path: str) -> str:
    # in --output a backslash switches placeholders off, so that %% would be two characters
    if not path.startswith("/") or "\\" in path:
        raise ValueError("must be an absolute path without backslashes")
    return path


Path = Annotated[Line, AfterValidator(_absolute)]


class Element(Table):
    """One task of a job array."""

    settings: tuple[Line, ...]
    """what differs: TABLE.KEY=VALUE, of the same keys in all tasks"""
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
    array: Annotated[tuple[Element, ...], Field(max_length=MOST)] = ()
    """one run each"""
    array_at_once: Count | None = None
    """tasks of the array at the same time, at most"""
    over: tuple[Line, ...] = ()
    """a sweep in one job: the keys and their values"""
    zip: bool = False
    """of a sweep: pair the values"""
    ranks_each: Count = 1
    """of a sweep: ranks of each case"""
    at_once: Count | None = None
    """of a sweep: cases at the same time, at most"""
    stop_signal: StopSignal = "USR1"
    """on which the ranks stop: run.stop_signal"""
    after: tuple[JobId, ...] = ()
    """jobs that must have succeeded before"""
    after_any: tuple[JobId, ...] = ()
    """jobs that must have ended before, however"""
    command: tuple[Line, ...] = ()
    """in place of the run: a command that starts its ranks itself"""
    workdir: Path
    """where relative paths begin"""
    env_file: Path | None = None
    """jobs/env.sh of the installation"""
    virtual_env: Path | None = None
    """without env_file: the virtual environment to activate"""

    @model_validator(mode="after")
    def _directories_differ(self) -> Submission:
        often = Counter(element.directory for element in self.array)
        twice = next((name for name, times in often.items() if times > 1), None)
        if twice:
            raise ValueError(f"--array: two values share the directory {twice}")
        return self


def render(request: Submission, profile: SiteProfile) -> str:
    """The batch script, as plain text that a user can read, edit and submit by hand.

    Raises:
        UserError: the time limit leaves no time before the signal, or the ranks would not get it.
    """
    if profile.launcher == "mpirun" and not request.command and request.stop_signal not in HANDED_ON:
        raise UserError(
            f'run.stop_signal = "{request.stop_signal}": mpirun, the launcher of the site\'s profile, hands '
            f"on {' and '.join(HANDED_ON)} only"
        )
    if seconds(request.time) <= profile.signal_seconds:
        raise UserError(
            f"--time {request.time}: the ranks are told to stop signal_seconds = {profile.signal_seconds} s "
            "before the limit, which would be at once; ask for more time, or for less signal_seconds in the "
            "site's profile"
        )
    words = SWEEP if request.over else ONE_RUN
    if request.command:
        words = words | {"command": array("command", request.command)}
    return SCRIPT.substitute(
        top=shlex.quote(request.directory),
        directives="\n".join(_directives(request, profile)),
        what="\n".join(_what(request)),
        max_requeues=profile.max_requeues,
        signal_seconds=profile.signal_seconds,
        max_retries=profile.max_retries,
        environment="\n".join(_environment(request, profile)),
        launch=_launch(request, profile),
        **words,
    )


def _directives(request: Submission, profile: SiteProfile) -> list[str]:
    log = "slurm-%A_%a.out" if request.array else "slurm-%j.out"
    gpus = profile.gpus_per_task * request.ntasks_per_node
    shell_only = "B:" if profile.launcher == "mpirun" or request.command else ""  # see MPIRUN, ITSELF
    before = [f"{how}:{':'.join(jobs)}" for how, jobs in _before(request).items() if jobs]
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
        "signal": f"{shell_only}{request.stop_signal}@{profile.signal_seconds}",
        "open-mode": "append",
        "chdir": request.workdir,
        "output": f"{file_pattern(request.directory)}/{log}",
        "array": f"0-{len(request.array) - 1}{_throttle(request)}" if request.array else None,
        "dependency": ",".join(before) or None,
        "kill-on-invalid-dep": "yes" if before else None,  # or it would wait for ever
    }
    lines = [directive(option, value) for option, value in options.items() if value is not None]
    extra = [directive(*option.removeprefix("--").split("=", 1)) for option in profile.extra]
    return [*lines, directive("requeue"), *extra]


def _throttle(request: Submission) -> str:
    return f"%{request.array_at_once}" if request.array_at_once else ""


def _before(request: Submission) -> dict[str, tuple[str, ...]]:
    return {"afterok": request.after, "afterany": request.after_any}


def _what(request: Submission) -> list[str]:
    """Which run in which directory."""
    if request.command:
        return [f"directory={shlex.quote(request.directory)}"]
    lines = [f"config={shlex.quote(request.config)}"]
    settings = array("settings", request.settings, before="--set ")
    if not request.array:
        lines += [f"directory={shlex.quote(request.directory)}", settings]
        return lines + (_cases(request) if request.over else [])
    # of each key an array with its values
    keys = list(zip(*(element.settings for element in request.array), strict=True))
    names = ["values", *(f"values_{number}" for number in range(2, len(keys) + 1))]
    return [
        *lines,
        *(array(name, values) for name, values in zip(names, keys, strict=True)),
        array("directories", (element.directory for element in request.array)),
        "directory=${directories[SLURM_ARRAY_TASK_ID]}",
        settings,
        *(f'settings+=(--set "${{{name}[SLURM_ARRAY_TASK_ID]}}")' for name in names),
    ]


def _cases(request: Submission) -> list[str]:
    """The options of the sweep."""
    more = [*(["--zip"] if request.zip else []), f"--ranks-each {request.ranks_each}"]
    more += [f"--at-once {request.at_once}"] if request.at_once else []
    return [array("cases", request.over, before="--over "), f"cases+=({' '.join(more)})"]


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
    if request.command:
        return ITSELF
    traps = " ".join(dict.fromkeys((request.stop_signal, "TERM")))
    if profile.launcher == "mpirun":
        # mpirun gives a rank one core unless told otherwise
        free = " --bind-to none" if request.cpus_per_task > 1 else ""
        return BatchScript(MPIRUN).substitute(
            tasks=request.ntasks_per_node, options=free, signal=request.stop_signal, signals=traps
        )
    # every rank sees all GPUs of its node and takes the one with its local number; near cores of its own
    bound = " --cpu-bind=cores" if profile.gpus_per_task else ""
    return BatchScript(SRUN).substitute(mpi=profile.mpi, options=bound, signals=traps)
