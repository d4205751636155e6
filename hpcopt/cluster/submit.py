"""`hpcopt submit`: everything is checked before anything is queued."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpcopt.cluster import registry
from hpcopt.cluster.profile import SiteProfile, find, load_profile
from hpcopt.cluster.render import Submission, render
from hpcopt.cluster.slurm import LIMIT_SECONDS, NoAnswer, array_limit, call
from hpcopt.config import RunConfig, check_table, load
from hpcopt.config import sweep as planning
from hpcopt.errors import UserError
from hpcopt.ground.stamps import now
from hpcopt.ground.terminal import tell

SCRIPT, CONFIG = "job.sbatch", "submitted.toml"
SOURCE = "hpcopt submit"


@dataclass(frozen=True)
class Sweep:
    """Many runs in one job, as typed."""

    over: tuple[str, ...]
    zip: bool = False
    ranks_each: int = 1
    at_once: int | None = None


@dataclass(frozen=True)
class Order:
    """What the user asks for, as typed."""

    config: Path
    resources: dict[str, Any]
    """nodes, ntasks_per_node, cpus_per_task, time"""
    settings: tuple[str, ...] = ()
    out: Path | None = None
    profile: Path | None = None
    job_name: str | None = None
    array: tuple[str, ...] = ()
    after: tuple[str, ...] = field(default=())
    array_at_once: int | None = None
    sweep: Sweep | None = None


def prepare(order: Order) -> tuple[Submission, SiteProfile]:
    """Checks everything and reads the site's profile; writes nothing, needs no Slurm.

    Raises:
        UserError: the config (with each of the array's values), an option or the profile is wrong.
    """
    profile = load_profile(find(order.profile, order.config))
    here = Path.cwd()
    top, stop_signal = _top(order)
    top = here / top
    if order.array_at_once is not None and not order.array:
        raise UserError("--array-at-once: is for --array")
    values = order.resources | {
        "stop_signal": stop_signal,
        "job_name": order.job_name if order.job_name is not None else order.config.stem,
        "directory": os.path.normpath(top),
        "config": str(here / order.config),
        "settings": order.settings,
        "array": tuple(_elements(order, top, stop_signal)) if order.array else (),
        "array_at_once": order.array_at_once,
        "after": tuple(job for jobs in order.after for job in jobs.split(",")),
        "workdir": str(here),
        "env_file": env_file(),
        "virtual_env": sys.prefix if sys.prefix != sys.base_prefix else None,
    }
    if order.sweep is not None:
        values |= _sweep(order, order.sweep)
    # messages name the option of the command line, which is the field's alias
    named = {Submission.model_fields[key].alias or key: value for key, value in values.items()}
    return check_table(Submission, named, SOURCE), profile


def submit(request: Submission, profile: SiteProfile, limit: float = LIMIT_SECONDS) -> str:
    """Writes the run's directory, hands the script to Slurm and notes the job; gives the job's number.

    Raises:
        UserError: the directory holds a run, or Slurm refuses: then nothing is left behind.
        NoAnswer: Slurm may have the job or not; the directory stays.
    """
    tasks = len(request.array)
    if tasks > 1 and (most := array_limit(limit)) is not None and tasks > most:
        raise UserError(
            f"--array: makes {tasks} tasks, and an array has at most {most} at this site (MaxArraySize); "
            "`--sweep --over …` in place of --array runs all of them in one job"
        )
    top = Path(request.directory)
    kept = request.model_copy(update={"config": str(top / CONFIG)})
    text = render(kept, profile)
    with _written(top, Path(request.config), text):
        job = sbatch(top / SCRIPT, limit)
    note(request, job, top / SCRIPT)
    return job


def sbatch(script: Path, limit: float) -> str:
    """Queues a script and gives the job's number; raises as `hpcopt.cluster.slurm.call`."""
    job = call(["sbatch", "--parsable", str(script)], limit).strip().partition(";")[0]
    if not re.fullmatch(r"[0-9]+", job):
        raise UserError(f"sbatch: its answer is not a job's number: {job[:200]!r}")
    return job


def _top(order: Order) -> tuple[Path, str]:
    """The directory of the run, or of all runs, and their run.stop_signal.

    The config without what differs between them is checked.
    """
    if order.sweep is None:
        config = _checked(order, order.settings)
        return order.out or Path(config.run.out or "."), config.run.stop_signal
    if order.out is None:
        raise UserError("--sweep: needs a directory: --out DIR")
    return order.out, _plan(order, order.sweep).stop_signal


def _checked(order: Order, settings: tuple[str, ...]) -> RunConfig:
    config = load(order.config, settings, out=order.out)
    ranks, told = _ranks(order)
    if ranks and (misfit := config.run.misfit(ranks, told)):
        raise UserError(f"{order.config}: [run] {misfit}")
    return config


def _ranks(order: Order) -> tuple[int, str]:
    """How many there are, and that in words; 0 for what is no number: it is told with the other resources."""
    nodes, tasks = order.resources["nodes"], order.resources["ntasks_per_node"]
    ranks = nodes * tasks
    told = f"--nodes {nodes} times --ntasks-per-node {tasks} makes {ranks} ranks"
    return (ranks if min(nodes, tasks) > 0 else 0), told


def _sweep(order: Order, sweep: Sweep) -> dict[str, Any]:
    """The keys of `Submission` for a sweep, all of whose cases are checked."""
    if order.array:
        raise UserError("--sweep: is one job, and --array many; take one of them")
    _plan(order, sweep).check(sweep.ranks_each)
    ranks, told = _ranks(order)
    if ranks and ranks < sweep.ranks_each:
        raise UserError(f"--ranks-each {sweep.ranks_each}: {told}")
    return asdict(sweep)


def _plan(order: Order, sweep: Sweep) -> planning.Plan:
    return planning.plan(order.config, sweep.over, order.settings, sweep.zip)


def _elements(order: Order, top: Path, stop_signal: str) -> Iterator[dict[str, Any]]:
    for case in planning.combined(order.array, zipped=False, option="--array"):
        config = _checked(order, (*order.settings, *case.settings))
        if config.run.stop_signal != stop_signal:
            both = planning.several_signals((stop_signal, config.run.stop_signal))
            raise UserError(f"{order.config}: {both}")
        # a value may be a path or a list: what is not plain in a file's name becomes _
        name = re.sub(r"[^\w.+=,-]", "_", ",".join(case.settings))
        yield {"settings": case.settings, "directory": os.path.normpath(top / name)}


@contextmanager
def _written(top: Path, config: Path, text: str) -> Iterator[None]:
    """The directory with the script and the config; taken back where Slurm did not take the job."""
    names = (SCRIPT, "config.toml", "run.h5", "checkpoints", planning.FILE)
    held = [name for name in names if os.path.lexists(top / name)]
    if held:
        again = f"`sbatch {top / SCRIPT}` goes on with it, or " if SCRIPT in held else ""
        raise UserError(f"{top}: already holds {held[0]}; {again}choose another directory with --out")
    made = _make(top)
    try:
        shutil.copyfile(config, top / CONFIG)
        (top / SCRIPT).write_text(text, encoding="utf-8")
        yield
    except NoAnswer as error:
        raise NoAnswer(
            f"{error}\nWhether the job is queued is not known: look with squeue. "
            f"`sbatch {top / SCRIPT}` tries again"
        ) from None
    except (OSError, UserError) as error:
        for name in (SCRIPT, CONFIG):
            (top / name).unlink(missing_ok=True)
        for directory in made:
            directory.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"{top}: cannot be written ({error.strerror})") from None
        raise


def _make(top: Path) -> list[Path]:
    """Makes the directory; gives those that were not there, innermost first."""
    missing = [path for path in (top, *top.parents) if not os.path.exists(path)]
    try:
        top.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{top}: cannot be made ({error.strerror})") from None
    return missing


def env_file() -> str | None:
    """The place of jobs/env.sh, where hpcopt runs from its source tree."""
    path = Path(__file__).resolve().parents[2] / "jobs" / "env.sh"
    return str(path) if path.is_file() else None


def note(request: Submission, job: str, script: Path) -> None:
    """Remembers a job for `hpcopt jobs`."""
    directories = [element.directory for element in request.array] or [request.directory]
    entry = registry.Entry(job, request.job_name, str(script), directories, bool(request.array), now())
    try:
        registry.note(entry)
    except OSError as error:  # the job is queued all the same
        tell(f"hpcopt: warning: {registry.place()}: cannot be written ({error.strerror})")
