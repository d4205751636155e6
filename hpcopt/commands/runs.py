"""Commands that run: configs, sweeps, eigenvalues; and those that help to write a config."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from hpcopt.commands.common import AtOnce, Over, Overrides, RanksEach, Zip, importing, together
from hpcopt.control import signals
from hpcopt.ground.terminal import say


def run(
    config: Annotated[Path, typer.Argument(help="The TOML file.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run's directory (run.out).")] = None,
) -> None:
    """Run a config: mpirun -n P hpcopt run CONFIG.toml; without a launcher, one rank with all workers."""
    signals.catch()
    from hpcopt.config import load

    comm, checked = together(lambda: load(config, overrides or [], out=out))
    signals.catch(checked.run.stop_signal)
    with importing():
        from hpcopt.api import start

    start(comm, checked)


def resume(
    directory: Annotated[Path, typer.Argument(help="The run's directory.")], overrides: Overrides = None
) -> None:
    """Go on from the newest intact checkpoint, on any number of ranks."""
    signals.catch()
    from hpcopt.config import resumable

    comm, checked = together(lambda: resumable(directory, overrides or []))
    signals.catch(checked.run.stop_signal)
    with importing():
        from hpcopt.api import resume

    resume(directory, comm=comm, overrides=tuple(overrides or ()))


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

    comm, plan = together(checked)
    signals.catch(plan.stop_signal)
    with importing():
        from hpcopt.api import sweep

    sweep(comm, plan, out, ranks_each, at_once, retry)


def init(
    method: Annotated[str, typer.Argument(help="The method.")],
    problem: Annotated[str | None, typer.Option(help="The kind of problem [default: one it is for].")] = None,
) -> None:
    """Print a commented config to start from."""
    from hpcopt.config import template

    say(template(method, problem))


def schema() -> None:
    """Print the JSON schema of a config, with which editors complete and check it."""
    from hpcopt.config.json_schema import json_schema

    say(json.dumps(json_schema(), indent=1, ensure_ascii=False))


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
    comm, (wanted, config) = together(
        lambda: (
            check_table(SpectrumTable, options, "hpcopt spectrum"),
            (resumable if run else load)(source, overrides or []),
        )
    )
    with importing():
        from hpcopt.engine.spectrum import of_config

    tree = of_config(comm, config, wanted, run, out)
    if comm.rank == 0:
        from hpcopt.report.spectrum import draw, table

        say(table(tree))
        if out is not None and probes:
            say(draw(tree, out / "density.png"))


def doctor() -> None:
    """Try what this machine really does, with a remedy per line. Alone, and under mpirun or srun."""
    from hpcopt.doctor import examine

    if not examine():
        raise typer.Exit(1)
