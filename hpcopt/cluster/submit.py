"""`hpcopt submit`: everything is checked before anything is queued."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcopt.cluster import registry
from hpcopt.cluster.profile import SiteProfile, find, load_profile
from hpcopt.cluster.render import Submission, render
from hpcopt.cluster.slurm import LIMIT_SECONDS, NoAnswer, call
from hpcopt.config import RunConfig, check_table, load
from hpcopt.errors import UserError
from hpcopt.ground.stamps import now
from hpcopt.ground.terminal import tell

SCRIPT, CONFIG = "job.sbatch", "submitted.toml"
SOURCE = "hpcopt submit"


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
    array: str | None = None
    after: tuple[str, ...] = field(default=())


def prepare(order: Order) -> tuple[Submission, SiteProfile]:
    """Checks everything and reads the site's profile; writes nothing, needs no Slurm.

    Raises:
        UserError: the config (with each of the array's values), an option or the profile is wrong.
    """
    profile = load_profile(find(order.profile, order.config))
    config = _checked(order, order.settings)
    here = Path.cwd()
    top = here / Path(config.run.out or ".")
    values = order.resources | {
        "job_name": order.job_name if order.job_name is not None else order.config.stem,
        "directory": os.path.normpath(top),
        "config": str(here / order.config),
        "settings": order.settings,
        "array": tuple(_elements(order, top)) if order.array is not None else (),
        "after": tuple(job for jobs in order.after for job in jobs.split(",")),
        "workdir": str(here),
        "env_file": _env_file(),
        "virtual_env": sys.prefix if sys.prefix != sys.base_prefix else None,
    }
    # messages name the option of the command line, which is the field's alias
    named = {Submission.model_fields[key].alias or key: value for key, value in values.items()}
    return check_table(Submission, named, SOURCE), profile


def submit(request: Submission, profile: SiteProfile, limit: float = LIMIT_SECONDS) -> str:
    """Writes the run's directory, hands the script to Slurm and notes the job; gives the job's number.

    Raises:
        UserError: the directory holds a run, or Slurm refuses: then nothing is left behind.
        NoAnswer: Slurm may have the job or not; the directory stays.
    """
    top = Path(request.directory)
    kept = request.model_copy(update={"config": str(top / CONFIG)})
    text = render(kept, profile)
    with _written(top, Path(request.config), text):
        job = call(["sbatch", "--parsable", str(top / SCRIPT)], limit).strip().partition(";")[0]
        if not re.fullmatch(r"[0-9]+", job):
            raise UserError(f"sbatch: its answer is not a job's number: {job[:200]!r}")
    _note(request, job)
    return job


def _checked(order: Order, settings: tuple[str, ...]) -> RunConfig:
    config = load(order.config, settings, out=order.out)
    nodes, tasks = order.resources["nodes"], order.resources["ntasks_per_node"]
    ranks = nodes * tasks
    told = f"--nodes {nodes} times --ntasks-per-node {tasks} makes {ranks} ranks"
    # what is no number of nodes is told with the other resources
    if min(nodes, tasks) > 0 and (misfit := config.run.misfit(ranks, told)):
        raise UserError(f"{order.config}: [run] {misfit}")
    return config


def _elements(order: Order, top: Path) -> Iterator[dict[str, Any]]:
    key, equals, text = (order.array or "").partition("=")
    if not equals or not re.fullmatch(r"\w+\.\w+", key, re.ASCII):
        raise UserError(f"--array {order.array}: must be TABLE.KEY=VALUE,VALUE,…, like method.lr=0.1,0.2")
    if key == "run.out":
        raise UserError("--array run.out: every run of an array gets a directory of its own anyway")
    for value in split(text):
        setting = f"{key}={value}"
        _checked(order, (*order.settings, setting))
        # a value may be a path or a list: what is not plain in a file's name becomes _
        name = re.sub(r"[^\w.+=,-]", "_", setting)
        yield {"setting": setting, "directory": os.path.normpath(top / name)}


def split(text: str) -> list[str]:
    """A list's elements between commas, where those inside brackets and quotes do not count."""
    parts = re.findall(r"""((?:\[[^][]*\]|"[^"]*"|'[^']*'|[^,\[\]"'])+)(?:,|$)""", text)
    if not parts or ",".join(parts) != text:
        raise UserError(f"--array …={text}: must be values, with one comma between two of them")
    return parts


@contextmanager
def _written(top: Path, config: Path, text: str) -> Iterator[None]:
    """The directory with the script and the config; taken back where Slurm did not take the job."""
    held = [name for name in (SCRIPT, "config.toml", "run.h5", "checkpoints") if os.path.lexists(top / name)]
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


def _env_file() -> str | None:
    """jobs/env.sh, where hpcopt runs from its source tree."""
    path = Path(__file__).resolve().parents[2] / "jobs" / "env.sh"
    return str(path) if path.is_file() else None


def _note(request: Submission, job: str) -> None:
    directories = [element.directory for element in request.array] or [request.directory]
    script = str(Path(request.directory) / SCRIPT)
    entry = registry.Entry(job, request.job_name, script, directories, bool(request.array), now())
    try:
        registry.note(entry)
    except OSError as error:  # the job is queued all the same
        tell(f"hpcopt: warning: {registry.place()}: cannot be written ({error.strerror})")
