"""Commands that queue jobs and launch scaling studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpcopt.commands.common import AtOnce, Over, Overrides, RanksEach, Zip, together
from hpcopt.control import signals
from hpcopt.control.launcher import expected_size, launcher_name
from hpcopt.errors import UserError
from hpcopt.ground.terminal import say


def submit(
    config: Annotated[Path, typer.Argument(help="The TOML file.")],
    nodes: Annotated[int, typer.Option(help="Nodes.")],
    ntasks_per_node: Annotated[int, typer.Option(help="Ranks per node.")],
    time: Annotated[str, typer.Option(help="Time limit: MINUTES, HH:MM:SS, D-HH:MM:SS, …")],
    cpus_per_task: Annotated[int, typer.Option(help="Cores, and threads, per rank.")] = 1,
    job_name: Annotated[str | None, typer.Option(help="The job's name (the config's).")] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run's directory (run.out).")] = None,
    array: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TABLE.KEY=V1,V2,…", help="One run per value, as a job array; every combination."
        ),
    ] = None,
    array_at_once: Annotated[
        int | None, typer.Option(min=1, help="Tasks of the array at the same time, at most.")
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Many runs in this one job: hpcopt sweep.")] = False,
    over: Over = None,
    zipped: Zip = False,
    ranks_each: RanksEach = 1,
    at_once: AtOnce = None,
    after: Annotated[
        list[str] | None, typer.Option(metavar="JOB[,JOB]", help="Start when these jobs have succeeded.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="The site's profile (site.toml here, or in ~/.config/hpcopt).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script; needs no Slurm.")] = False,
) -> None:
    """Check a config and queue it as a Slurm job; prints the job's number."""
    from hpcopt.cluster import render
    from hpcopt.cluster import submit as submission

    resources = {
        "nodes": nodes,
        "ntasks_per_node": ntasks_per_node,
        "cpus_per_task": cpus_per_task,
        "time": time,
    }
    many = submission.Sweep(tuple(over or ()), zipped, ranks_each, at_once)
    if not sweep and many != submission.Sweep(()):
        raise UserError("--over, --zip, --ranks-each and --at-once are for --sweep; job arrays take --array")
    order = submission.Order(
        config,
        resources,
        tuple(overrides or ()),
        out,
        profile,
        job_name,
        tuple(array or ()),
        tuple(after or ()),
        array_at_once,
        many if sweep else None,
    )
    request, site = submission.prepare(order)
    if dry_run:
        say(render.render(request, site), end="")
    else:
        say(submission.submit(request, site))


def scale(
    source: Annotated[
        Path, typer.Argument(metavar="CONFIG|STUDY", help="A TOML file, or a study's directory.")
    ],
    mode: Annotated[
        str | None, typer.Option(help="strong: the same problem; weak: workers in proportion to the ranks.")
    ] = None,
    ranks: Annotated[str | None, typer.Option(metavar="P1,P2,…", help="The points of the study.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Launches of each point (5).")] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Rounds that are timed (run.rounds less the warm-up).")
    ] = None,
    warm_up: Annotated[
        int | None, typer.Option(help="Rounds before these, left out (those between two records).")
    ] = None,
    launcher: Annotated[
        str | None, typer.Option(help="What starts {ranks} ranks (mpirun; srun in an allocation).")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The study's directory.")] = None,
    only: Annotated[
        str | None, typer.Option("--points", metavar="P1,…", help="Only launches of these, now.")
    ] = None,
    collect: Annotated[bool, typer.Option("--collect", help="Launch nothing; collect.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Launches that failed, too.")] = False,
    submit: Annotated[bool, typer.Option("--submit", help="Queue a Slurm job for each point.")] = False,
    ntasks_per_node: Annotated[int, typer.Option(help="--submit: ranks per node.")] = 1,
    cpus_per_task: Annotated[int, typer.Option(help="--submit: cores, and threads, per rank.")] = 1,
    time: Annotated[str, typer.Option(help="--submit: time limit of each job.")] = "1:00:00",
    profile: Annotated[Path | None, typer.Option(help="--submit: the site's profile.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="--submit: print the scripts.")] = False,
) -> None:
    """How far does a config scale? Launches it on several numbers of ranks, again and again."""
    if launcher_name() == "mpirun" or expected_size() > 1:
        together(_launches_itself)
    from hpcopt.config.scale_plan import keep
    from hpcopt.config.scale_wish import Wish, numbers, usual_launcher

    options = {"mode": mode, "ranks": numbers("--ranks", ranks), "repeats": repeats, "rounds": rounds}
    options |= {"warm_up": warm_up, "launcher": launcher}
    wish, these = Wish(source, tuple(overrides or ()), options, out), numbers("--points", only)
    if submit:
        from hpcopt.cluster.scale import prepare

        resources = {"ntasks_per_node": ntasks_per_node, "cpus_per_task": cpus_per_task, "time": time}
        chain = prepare(wish, resources, profile, these, retry)
        say("\n".join(chain.scripts() if dry_run else chain.submit()))
        return
    signals.catch()
    plan = keep(wish.plan(usual_launcher()), wish.directory)
    points = plan.points(these)
    say(plan.said())
    from hpcopt.engine.scale import Study

    if not Study(wish.directory, plan, say).run([] if collect else points, retry):
        raise typer.Exit(1)


def jobs(
    follow: Annotated[
        str | None, typer.Option(metavar="JOB|DIR", help="Show this job's progress until it has ended.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also jobs that ended long ago.")] = False,
) -> None:
    """Your jobs: what waits, runs and failed, and why."""
    from hpcopt.cluster import follow as following
    from hpcopt.cluster import jobs as known

    if follow is None:
        say(known.table(everything))
    elif not following.follow(follow, say):
        raise typer.Exit(1)


def _launches_itself() -> None:
    raise UserError("hpcopt scale launches the ranks itself; start it without mpirun and srun")
