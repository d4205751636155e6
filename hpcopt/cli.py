"""The command line. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpcopt.control import signals
from hpcopt.control.launcher import expected_rank, expected_size, launcher_name
from hpcopt.errors import HpcoptError, UserError
from hpcopt.ground.terminal import brief, drop_unwritten, open_standard_streams, say, tell

if TYPE_CHECKING:
    from mpi4py import MPI

app = typer.Typer(
    help="Communication-efficient distributed optimisation as MPI jobs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Data files that every rank reads its own rows of.", no_args_is_help=True)
app.add_typer(data, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        say(version("hpcopt"))
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Communication-efficient distributed optimisation as MPI jobs."""


Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key of the config.")
]
Over = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TABLE.KEY=V1,V2,…", help="A key's values; 0:5 is 0 to 4. Every combination is a case."
    ),
]
Zip = Annotated[bool, typer.Option("--zip", help="Pair the values of the keys.")]
RanksEach = Annotated[int, typer.Option(min=1, help="Ranks of each case.")]
AtOnce = Annotated[int | None, typer.Option(min=1, help="Cases at the same time, at most.")]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="The TOML file.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run's directory (run.out).")] = None,
) -> None:
    """Run a config: mpirun -n P hpcopt run CONFIG.toml; without a launcher, one rank with all workers."""
    signals.catch()
    from hpcopt.config import load

    comm, checked = _together(lambda: load(config, overrides or [], out=out))
    from hpcopt.api import start

    start(comm, checked)


@app.command()
def resume(
    directory: Annotated[Path, typer.Argument(help="The run's directory.")], overrides: Overrides = None
) -> None:
    """Go on from the newest intact checkpoint, on any number of ranks."""
    signals.catch()
    from hpcopt.config import resumable

    comm, _ = _together(lambda: resumable(directory, overrides or []))
    from hpcopt.api import resume

    resume(directory, comm=comm, overrides=tuple(overrides or ()))


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(help="The TOML file.")],
    out: Annotated[Path, typer.Option(help="The sweep's directory.")],
    over: Over = None,
    zipped: Zip = False,
    ranks_each: RanksEach = 1,
    at_once: AtOnce = None,
    cases: Annotated[
        Path | None, typer.Option(help="A TOML file that lists the cases: [NAME] and TABLE.KEY = VALUE.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run cases that failed again.")] = False,
    overrides: Overrides = None,
) -> None:
    """Many runs of one config in one job, on groups of its ranks; the same command goes on with them.

    mpirun -n 4 hpcopt sweep CONFIG --over method.lr=0.01,0.1 --over run.seed=0:5 --out DIR
    """
    signals.catch()
    from hpcopt.config import sweep as planning

    def checked() -> planning.Plan:
        plan = planning.plan(config, over or [], overrides or [], zipped, cases)
        plan.check(ranks_each)
        return plan

    comm, plan = _together(checked)
    from hpcopt.api import sweep

    sweep(comm, plan, out, ranks_each, at_once, retry)


@app.command()
def init(
    method: Annotated[str, typer.Argument(help="The method.")],
    problem: Annotated[str | None, typer.Option(help="The kind of problem [default: one it is for].")] = None,
) -> None:
    """Print a commented config to start from."""
    from hpcopt.config import template

    say(template(method, problem))


@app.command()
def schema() -> None:
    """Print the JSON schema of a config, with which editors complete and check it."""
    from hpcopt.config.json_schema import json_schema

    say(json.dumps(json_schema(), indent=1, ensure_ascii=False))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The run's directory.")],
    file: Annotated[
        Path | None, typer.Argument(help="What to write: a .pt (a state_dict) or a .npz file.")
    ] = None,
    round: Annotated[int | None, typer.Option(help="Of which checkpoint [default: the newest].")] = None,
    worker: Annotated[int | None, typer.Option(help="Whose model, where workers have their own.")] = None,
    mean: Annotated[bool, typer.Option("--mean", help="The mean of the workers' models.")] = False,
    tensorboard: Annotated[
        Path | None, typer.Option(help="A directory for TensorBoard: the metrics as scalars, by round.")
    ] = None,
) -> None:
    """Write the trained model by names: parameters, buffers, and what was not trained; or metrics."""
    if file is None and tensorboard is None:
        raise UserError("hpcopt export: name a .pt or .npz file for the model, or --tensorboard DIR")
    if file is not None:
        from hpcopt.report.export import export

        say(f"{file}: from {export(run, file, round=round, worker=worker, mean=mean)}")
    if tensorboard is not None:
        from hpcopt.report import tensorboard as events

        with _extra("report"):
            say(f"{tensorboard}: {events.export(run, tensorboard)} records")


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Runs' directories or run.h5, sweeps, scaling studies."),
    ],
    html: Annotated[Path | None, typer.Option(help="A page with all figures, in one file.")] = None,
    png: Annotated[Path | None, typer.Option(help="A directory for the figures.")] = None,
) -> None:
    """Tables of a run, of many in comparison, or of a scaling study; as a page and as figures, too."""
    with _extra("report"):
        from hpcopt.report import tables, terminal
        from hpcopt.report.runs import find

        found = find(runs)
        if not found.runs and not found.scalings:
            troubles = (f"{trouble.path}: {trouble.message}" for trouble in found.troubles)
            raise UserError("\n".join(troubles) or f"{', '.join(map(str, runs))}: no run in there")
        terminal.write(tables.for_report(found))
        if html is not None:
            from hpcopt.report import page

            page.write(found, html)
            say(f"page: {html}")
        if png is not None:
            from hpcopt.report import figures

            figures.save_png(figures.for_report(found), png)
            say(f"figures: {png}")


@app.command()
def spectrum(
    source: Annotated[Path, typer.Argument(metavar="CONFIG|RUN", help="A TOML file, or a run's directory.")],
    largest: Annotated[int, typer.Option(help="How many of the largest eigenvalues.")] = 10,
    smallest: Annotated[int, typer.Option(help="How many of the smallest ones.")] = 0,
    tolerance: Annotated[float, typer.Option(help="Of residuals, relative to the largest |λ|.")] = 1e-6,
    iterations: Annotated[
        int | None, typer.Option(help="Vectors in the basis (40, or 2 × pairs + 10).")
    ] = None,
    probes: Annotated[int, typer.Option(help="Random vectors for the density; 0: none.")] = 4,
    nodes: Annotated[int, typer.Option(help="Products with the Hessian for each of them.")] = 40,
    batch: Annotated[bool, typer.Option("--batch", help="On the first mini-batch, not on all rows.")] = False,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="A directory for run.h5 and a figure of the density.")
    ] = None,
) -> None:
    """Eigenvalues of the Hessian, at a config's start or a run's last checkpoint. Alone and under mpirun."""
    from hpcopt.config import check_table, load, resumable
    from hpcopt.config.spectrum import SpectrumTable

    options = {"largest": largest, "smallest": smallest, "tolerance": tolerance, "iterations": iterations}
    options |= {"probes": probes, "nodes": nodes, "batch": batch}
    run = source if os.path.isdir(source) else None  # unlike Path.is_dir, it takes any name
    comm, (wanted, config) = _together(
        lambda: (
            check_table(SpectrumTable, options, "hpcopt spectrum"),
            (resumable if run else load)(source, overrides or []),
        )
    )
    from hpcopt.engine.spectrum import of_config

    tree = of_config(comm, config, wanted, run, out)
    if comm.rank == 0:
        from hpcopt.report.spectrum import draw, table

        say(table(tree))
        if out is not None and probes:
            say(draw(tree, out / "density.png"))


@app.command()
def predict(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Measured runs, on several numbers of ranks if possible."),
    ],
    ranks: Annotated[str, typer.Option(help="For which numbers of ranks: 64,1024,8192.")],
    machine: Annotated[
        str | None, typer.Option(metavar="FILE", help="A machine file, or the name of one of hpcopt's own.")
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(help="Rank methods by the time to this loss (the smallest that all reached)."),
    ] = None,
    ranks_per_host: Annotated[int | None, typer.Option(min=1, help="(the machine's, or the runs')")] = None,
    extrap: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Write input for Extra-P; run it, if installed.")
    ] = None,
) -> None:
    """Predict rounds on other numbers of ranks and another machine, from measured runs."""
    from hpcopt.costs.outlook import outlook, parse_ranks
    from hpcopt.costs.show import show

    found = outlook(runs, parse_ranks(ranks), machine, target, ranks_per_host)
    show(found)
    if extrap is not None:
        from hpcopt.costs.extrap import second_opinion, write

        for file in write(found.models, extrap):
            typer.echo(second_opinion(file))


@app.command()
def doctor() -> None:
    """Try what this machine really does, with a remedy per line. Alone, and under mpirun or srun."""
    from hpcopt.doctor import examine

    if not examine():
        raise typer.Exit(1)


@app.command()
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


@app.command()
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
        _together(_launches_itself)
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


@app.command()
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


@data.command("import")
def data_import(
    file: Annotated[Path, typer.Argument(help="Text, an npz, or a directory or images file in idx format.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.h5", help="The file to write.")],
    format: Annotated[str, typer.Option(help="idx, npz or svmlight (sparse rows; plain, .gz, .bz2 or .xz).")],
    test: Annotated[Path | None, typer.Option(help="svmlight: a file with the test rows.")] = None,
    test_fraction: Annotated[
        float | None, typer.Option(help="svmlight, npz: the part of the rows that becomes test rows.")
    ] = None,
    features: Annotated[
        int | None, typer.Option(help="svmlight: the length of a row (else the largest index).")
    ] = None,
) -> None:
    """Import a data set, in pieces, also one larger than memory."""
    from hpcopt.problems.data import importer

    formats: dict[str, tuple[Callable[..., None], set[str]]] = {
        "idx": (importer.import_idx, set()),
        "npz": (importer.import_npz, {"test_fraction"}),
        "svmlight": (importer.import_svmlight, {"test", "test_fraction", "features"}),
    }
    if format not in formats:
        raise UserError(f"--format {format}: allowed are idx, npz and svmlight")
    function, allowed = formats[format]
    options = {"test": test, "test_fraction": test_fraction, "features": features}
    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() - allowed:
        raise UserError(f"--{name.replace('_', '-')} is not for --format {format}")
    function(file, out, **given)
    _print_info(out)


@data.command("info")
def data_info(file: Annotated[Path, typer.Argument(metavar="FILE.h5")]) -> None:
    """Tell what a data file holds."""
    _print_info(file)


@data.command("optimum")
def data_optimum(
    config: Annotated[Path, typer.Argument(help="The TOML file.")], overrides: Overrides = None
) -> None:
    """Compute the smallest value of a linear problem's objective; prints the line for [problem]."""
    from hpcopt.config import load
    from hpcopt.engine.optimum import optimum

    say(f"optimum = {optimum(load(config, overrides or []))!r}")


def main() -> None:
    """The entry point: errors become one message from rank 0 and the exit code of the contract."""
    open_standard_streams()
    # typer's command line errors: click's, or those of the copy of click inside newer versions of typer
    usage: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
    # read by torch when it is imported: large tensors in huge pages, which MPI copies faster
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        sys.exit(app([_at_home(word) for word in sys.argv[1:]], standalone_mode=False))
    except HpcoptError as error:
        _fail(f"hpcopt: error: {error}", error.exit_code)
    except usage as error:
        if expected_size() > 1:
            _world()  # no rank ends, and the launcher with it the job, before rank 0 has spoken
        message = error.format_message()  # none where the help was printed for want of arguments
        _fail(f"hpcopt: error: {message} (hpcopt --help)" if message else "", 2)
    except typer.Abort:
        _fail("hpcopt: aborted", 1)
    finally:
        signals.ignore()
        drop_unwritten()


def _at_home(word: str) -> str:
    """An argument whose path begins with ~, which shells leave as it is in --out=~/mine."""
    option, equals, path = word.partition("=") if re.match(r"--[\w-]+=~", word) else ("", "", word)
    return f"{option}{equals}{os.path.expanduser(path)}"


def _launches_itself() -> None:
    raise UserError("hpcopt scale launches the ranks itself; start it without mpirun and srun")


def _fail(message: str, code: int) -> None:
    if _rank() == 0 and message:
        tell(brief(message))
    sys.exit(code)


def _rank() -> int:
    if "mpi4py.MPI" in sys.modules and (rank := _world().rank):
        return rank
    return expected_rank()  # of processes that MPI does not bring together one speaks for all, too


def _world() -> MPI.Comm:
    """All ranks of the job; starts MPI."""
    from hpcopt.control.world import world

    return world()


def _together(check: Callable[[], Any]) -> tuple[MPI.Comm, Any]:
    """Checks the user's input: at once on one rank, in agreement on more."""
    if expected_size() == 1:
        result = check()
        return _world(), result
    from hpcopt.control.agree import agreed
    from hpcopt.control.world import ranks_for

    comm = ranks_for(None)
    result = None
    with agreed(comm):
        result = check()
    return comm, result


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Says which part of the package is not installed where a library is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"needs {error.name}: pip install 'hpcopt[{name}]'") from None


def _print_info(file: Path) -> None:
    from hpcopt.problems.data import importer

    for key, value in importer.describe(file).items():
        say(f"{key}: {value}")
