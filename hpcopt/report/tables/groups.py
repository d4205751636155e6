"""Arrays that methods keep: staleness and spectrum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpcopt.report.runs import Run
from hpcopt.report.tables.table import Cell, Table, columns, number, numbers

PAIRS = 5
"""of each run that the table has, the ones with the largest |λ|"""


def staleness(runs: Sequence[Run]) -> Table:
    """A row for each run that has it."""
    rows: list[list[Cell]] = []
    for run in runs:
        if run.has("staleness/count"):
            counts = run.numbers("staleness/count").astype(float)
            delays, total = np.arange(len(counts)), counts.sum()
            if total:
                upto = np.cumsum(counts)
                at = [int(np.argmax(upto >= part * total)) for part in (0.5, 0.95)]
                mean, largest = float(counts @ delays / total), int(np.flatnonzero(counts)[-1])
                rows.append([run.name, number(total), mean, *at, largest])
    return Table(
        "staleness",
        "Staleness",
        "Of all gradients that were applied: how many others were since the version of the model that they "
        "are of.",
        columns("run", "gradients [1]", "mean [1]", "median [1]", "95 % are at most [1]", "largest [1]"),
        rows,
    )


def spectrum(runs: Sequence[Run]) -> Table:
    """A row for each of the largest pairs of each run that has some."""
    rows: list[list[Cell]] = []
    for run in runs:
        if not run.has("spectrum/eigenvalue") or not len(run.numbers("spectrum/eigenvalue")):
            continue
        values = run.numbers("spectrum/eigenvalue")[-1]
        residuals = (
            run.numbers("spectrum/residual")[-1] if run.has("spectrum/residual") else [None] * len(values)
        )
        age = number(run.last("metrics/spectrum_age"))
        order = np.argsort(-np.abs(values), kind="stable")[:PAIRS]
        rows += [[run.name, int(at), *numbers((values[at], residuals[at])), age] for at in order]
    return Table(
        "spectrum",
        "Eigenvalues of the Hessian",
        f"Of the last refresh, at most the {PAIRS} largest in absolute value; age: rounds since then.",
        columns("run", "pair [1]", "eigenvalue [1]", "residual [1]", "age [1]"),
        rows,
    )
