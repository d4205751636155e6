"""What runs have reached: the last record, the best loss, medians over seeds, spread over workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hpcopt.report.runs import Run, alike
from hpcopt.report.tables.table import Cell, Column, Table, columns, number, numbers

LAST = ("loss", "test_loss", "accuracy", "seconds", "bytes_sent", "gradients", "epochs", "peak_memory")
"""metrics of the last record that the summary has; the others are in a table of their own"""


def summary(runs: Sequence[Run]) -> Table:
    """A row for each run."""
    return Table(
        "summary",
        "Summary",
        "The last record of each run. Seconds are the optimisation clock of the slowest rank, without "
        "evaluation and files; bytes are those that all ranks have sent, gradients those of single rows.",
        columns(
            *("run", "status", "method", "problem", "workers [1]", "ranks [1]", "rounds [1]", "planned [1]"),
            *("loss [1]", "test loss [1]", "accuracy [1]", "best loss [1]", "in round [1]", "seconds [s]"),
            *("bytes sent [B]", "gradients [1]", "epochs [1]", "peak memory [B]"),
        ),
        [_summary(run) for run in runs],
    )


def best(run: Run) -> tuple[Cell, Cell]:
    """The smallest training loss that is a number, and the round of its record."""
    losses = run.numbers("metrics/loss") if run.records and run.has("metrics/loss") else np.array([])
    if np.isnan(losses).all():
        return None, None
    at = int(np.nanargmin(losses))
    return number(losses[at]), number(run.numbers("metrics/round")[at])


def medians(runs: Sequence[Run]) -> Table:
    """A row for each quantity of runs that differ only in their seeds."""
    from hpcopt.report.statistics import median

    quantities: list[tuple[str, str, Callable[[Run], Any]]] = [
        ("loss", "1", lambda run: run.last("metrics/loss")),
        ("best loss", "1", lambda run: best(run)[0]),
        ("test loss", "1", lambda run: run.last("metrics/test_loss")),
        ("accuracy", "1", lambda run: run.last("metrics/accuracy")),
        ("seconds", "s", lambda run: run.last("metrics/seconds")),
        ("bytes sent", "B", lambda run: run.last("metrics/bytes_sent")),
        ("gradients", "1", lambda run: run.last("metrics/gradients")),
    ]
    rows: list[list[Cell]] = []
    for group in alike(runs):
        if len(group.runs) == 1:
            continue
        for quantity, unit, of in quantities:
            samples = [float(value) for run in group.runs if (value := of(run)) is not None]
            if samples:
                found = median(samples)
                rows.append(
                    [
                        group.name,
                        quantity,
                        unit,
                        found.count,
                        found.value,
                        found.low,
                        found.high,
                        found.interval,
                    ]
                )
    return Table(
        "medians",
        "Medians of runs that differ only in seeds",
        "Of the last records, whatever the runs' status. Intervals are nonparametric (order statistics); "
        "below six runs they are the smallest and the largest value.",
        columns("runs", "quantity", "unit", "count [1]", "median [1]", "low [1]", "high [1]", "low to high"),
        rows,
    )


def metrics(runs: Sequence[Run]) -> Table:
    """The last record's other metrics, a row for each run; runs may have different ones."""
    names: dict[str, str] = {}
    for run in runs:
        if run.records:
            variables = run.tree["metrics"].data_vars
            names |= {str(name): str(column.attrs.get("units", "1")) for name, column in variables.items()}
    for name in ("round", *LAST):
        names.pop(name, None)
    return Table(
        "metrics",
        "Further metrics",
        "Of the last record; empty where a run has no such metric.",
        [Column("run"), *(Column(name, unit) for name, unit in names.items())],
        [[run.name, *numbers(run.last(f"metrics/{name}") for name in names)] for run in runs if names],
    )


def workers(runs: Sequence[Run]) -> Table:
    """How far apart the workers are in the last record, a row for each run and quantity."""
    rows: list[list[Cell]] = []
    for run in runs:
        if not run.records or "workers" not in run.tree.children:
            continue
        for name in run.tree["workers"].data_vars:
            values = run.last(f"workers/{name}")
            known = values[~np.isnan(values)]
            if len(known):
                spread = (known.min(), *np.quantile(known, (0.25, 0.5, 0.75), method="lower"), known.max())
                ends = int(np.nanargmin(values)), int(np.nanargmax(values))
                rows.append([run.name, str(name), len(known), *numbers(spread), *ends])
    return Table(
        "workers",
        "Spread over the workers",
        "Of the last record: quartiles are values of workers, the lower one where two are as near.",
        columns(
            *("run", "quantity", "workers [1]", "smallest [1]", "first quartile [1]", "median [1]"),
            *("third quartile [1]", "largest [1]", "smallest has worker [1]", "largest has worker [1]"),
        ),
        rows,
    )


def _summary(run: Run) -> list[Cell]:
    about, (loss, at) = run.tree.attrs, best(run)
    planned = run.config.get("run", {}).get("rounds")
    last = {name: number(run.last(f"metrics/{name}")) for name in ("round", *LAST)}
    return [
        *(run.name, run.status, str(about.get("method", "")), str(about.get("problem", ""))),
        *(number(about.get("workers")), number(about.get("ranks")), last["round"], planned),
        *(last["loss"], last["test_loss"], last["accuracy"], loss, at, last["seconds"]),
        *(last["bytes_sent"], last["gradients"], last["epochs"], last["peak_memory"]),
    ]
