"""`hpcopt scale --submit`: a Slurm job for each point of a study, in a chain; the last one collects."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcopt.cluster.profile import SiteProfile, find, load_profile
from hpcopt.cluster.render import Submission, render
from hpcopt.cluster.slurm import LIMIT_SECONDS, NoAnswer, call
from hpcopt.cluster.submit import env_file, note, sbatch
from hpcopt.config import check_table
from hpcopt.config.scale import RANKS, SOURCE, Plan
from hpcopt.config.scale_plan import keep
from hpcopt.config.scale_wish import Wish
from hpcopt.errors import UserError
from hpcopt.ground import files

JOBS = "jobs"
COLLECT = "collect"


@dataclass(frozen=True)
class Job:
    """What becomes one job.

    Attributes:
        name: of its script.
        request: but for the job that it follows.
    """

    name: str
    request: Submission


@dataclass(frozen=True)
class Chain:
    """The jobs of a study, as they follow one another.

    Attributes:
        directory: the study's.
        plan: the study; kept in the directory once it is submitted.
        jobs: one for each point, and the last.
        profile: the site.
    """

    directory: Path
    plan: Plan
    jobs: list[Job]
    profile: SiteProfile

    def scripts(self) -> list[str]:
        """The batch scripts, but for what each waits for."""
        return [self._script(job, ()) for job in self.jobs]

    def submit(self, limit: float = LIMIT_SECONDS) -> list[str]:
        """Queues the jobs, each after the one before it has ended, however; gives their numbers.

        Raises:
            UserError: the directory holds something else; or Slurm refuses: then none of them is queued.
            NoAnswer: what was queued until then stays.
        """
        numbers: list[str] = []
        folder = self.directory / JOBS
        keep(self.plan, self.directory)
        with files.refusals(folder):
            folder.mkdir(exist_ok=True)
        for job in self.jobs:
            path = folder / f"{job.name}.sbatch"
            with files.refusals(path):
                path.write_text(self._script(job, tuple(numbers[-1:])), encoding="utf-8")
            try:
                numbers.append(sbatch(path, limit))
            except NoAnswer as error:
                queued = f"queued until then: {', '.join(numbers) or 'nothing'}"
                raise NoAnswer(f"{error}\n{path} may be queued or not: look with squeue; {queued}") from None
            except UserError:
                if numbers:
                    with suppress(UserError):
                        call(["scancel", *numbers], limit)
                raise
            note(job.request, numbers[-1], path)
        return numbers

    def _script(self, job: Job, before: tuple[str, ...]) -> str:
        return render(job.request.model_copy(update={"after_any": before}), self.profile)


def prepare(
    wish: Wish, resources: dict[str, Any], profile: Path | None, only: list[int] | None, retry: bool
) -> Chain:
    """Checks everything and reads the site's profile; writes nothing, needs no Slurm.

    Args:
        wish: the study.
        resources: ntasks_per_node, cpus_per_task, time.
        profile: the site's, if it is not in its usual place.
        only: these points; all if None.
        retry: also what failed.

    Raises:
        UserError: the config, an option or the profile is wrong.
    """
    site = load_profile(find(profile, wish.source))
    plan = wish.plan(_launcher(site, resources["cpus_per_task"]), by_point=True)
    jobs = list(_jobs(plan, plan.points(only), wish.directory, resources, ["--retry"] if retry else []))
    return Chain(wish.directory, plan, jobs, site)


def _launcher(profile: SiteProfile, cpus_per_task: int) -> str:
    """What starts the ranks at a site, with {ranks} for their number; see `hpcopt.cluster.template`."""
    if profile.launcher == "mpirun":
        return f"mpirun{' --bind-to none' if cpus_per_task > 1 else ''} -n {RANKS}"
    bound = " --cpu-bind=cores" if profile.gpus_per_task else ""
    return f"srun --mpi={profile.mpi} --kill-on-bad-exit=0 --wait=60{bound} -n {RANKS}"


def _jobs(
    plan: Plan, points: list[int], directory: Path, resources: dict[str, Any], more: list[str]
) -> Iterator[Job]:
    start = ("hpcopt", "scale", str(directory))
    for ranks in dict.fromkeys(launch.ranks for launch in plan.order if launch.ranks in points):
        command = (*start, "--points", str(ranks), *more)
        yield Job(f"p{ranks:05d}", _request(directory, resources, ranks, f"{ranks}", command))
    yield Job(COLLECT, _request(directory, resources, 1, COLLECT, (*start, "--collect")))


def _request(
    directory: Path, resources: dict[str, Any], ranks: int, what: str, command: tuple[str, ...]
) -> Submission:
    each = resources["ntasks_per_node"]
    values = resources | {
        "nodes": -(-ranks // max(each, 1)),
        "ntasks_per_node": min(ranks, each),
        "job_name": f"{directory.name}-{what}",
        "directory": str(directory),
        "config": str(directory),
        "command": command,
        "workdir": str(Path.cwd()),
        "env_file": env_file(),
        "virtual_env": sys.prefix if sys.prefix != sys.base_prefix else None,
    }
    # messages name the option of the command line, which is the field's alias
    named = {Submission.model_fields[key].alias or key: value for key, value in values.items()}
    return check_table(Submission, named, SOURCE)
