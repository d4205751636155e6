"""Commands after the run: weights, reports, predictions. They need neither MPI nor torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpcopt.commands.common import extra
from hpcopt.errors import UserError
from hpcopt.ground.terminal import say


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

        with extra("report"):
            say(f"{tensorboard}: {events.export(run, tensorboard)} records")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Runs' directories or run.h5, sweeps, scaling studies."),
    ],
    html: Annotated[Path | None, typer.Option(help="A page with all figures, in one file.")] = None,
    png: Annotated[Path | None, typer.Option(help="A directory for the figures.")] = None,
) -> None:
    """Tables of a run, of many in comparison, or of a scaling study; as a page and as figures, too."""
    with extra("report"):
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
