"""Arrays that methods keep, staleness and spectrum, and what became of each worker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from hpcopt.report.figures import drawing
from hpcopt.report.figures.conditions import conditions
from hpcopt.report.figures.drawing import Figure
from hpcopt.report.figures.groups import FINITE
from hpcopt.report.runs import Run

BOXES = 24
"""runs in one panel of boxes, at most"""
ROWS = 200
"""records of a run of which each worker's numbers are drawn, about"""
COLUMNS = 5
"""of /workers, at most"""


def staleness(runs: Sequence[Run]) -> list[Figure]:
    """A histogram for each run."""
    having = [run for run in runs if run.has("staleness/count") and run.numbers("staleness/count").sum()]
    if not having:
        return []
    with drawing.sheet(2, 2) as (sheet, axes):
        drawing.scales(axes[0])
        handles = []
        for at, run in enumerate(having[: drawing.COLOURED]):
            counts = run.numbers("staleness/count").astype(float)
            counts = counts[: int(np.flatnonzero(counts)[-1]) + 1]
            edges = np.arange(len(counts) + 1) - 0.5
            look = {key: value for key, value in drawing.style(at).items() if key != "marker"}
            handles.append(axes[0].stairs(100 * counts / counts.sum(), edges, linewidth=1.2, **look))
        axes[0].set(xlabel="staleness [gradients]", ylabel="part of all gradients [%]", ylim=(0, None))
        drawing.legend(axes[1], handles, [run.name for run in having])
    caption = (
        "Of all gradients that were applied: how many others were since the version of the model that they "
        f"are of. {_first(having, drawing.COLOURED)}{conditions(having, [1])}"
    )
    return [Figure("staleness", "Staleness", caption, sheet)]


def spectrum(runs: Sequence[Run]) -> list[Figure]:
    """The eigenvalues of the last refresh of each run, with their residuals as bars."""
    having = [
        run for run in runs if run.has("spectrum/eigenvalue") and len(run.numbers("spectrum/eigenvalue"))
    ]
    if not having:
        return []
    with drawing.sheet(2, 2) as (sheet, axes):
        drawing.scales(axes[0])
        handles = []
        for at, run in enumerate(having[: drawing.COLOURED]):
            values = run.numbers("spectrum/eigenvalue")[-1]
            known = run.has("spectrum/residual")
            residuals = run.numbers("spectrum/residual")[-1] if known else np.zeros_like(values)
            order = np.argsort(-values, kind="stable")
            bars = np.abs(residuals[order])
            look = drawing.style(at) | {"linestyle": "none", "capsize": 2}
            handles.append(axes[0].errorbar(np.arange(len(values)), values[order], bars, **look))
        axes[0].set(xlabel="pair, the largest first", ylabel="eigenvalue λ")
        drawing.legend(axes[1], handles, [run.name for run in having])
    caption = (
        "Eigenvalues of the Hessian at the last refresh; bars: ± the residual ‖Hv − λv‖. "
        f"{_first(having, drawing.COLOURED)}{conditions(having, [1])}"
    )
    return [Figure("spectrum", "Spectrum", caption, sheet)]


def workers(runs: Sequence[Run]) -> list[Figure]:
    """What became of each worker: of one run, over its rounds; of several, at the end."""
    having = [run for run in runs if run.records and "workers" in run.tree.children]
    names = list(dict.fromkeys(str(name) for run in having for name in run.tree["workers"].data_vars))[
        :COLUMNS
    ]
    if not names:
        return []
    draw = _over_rounds if len(having) == 1 else _at_the_end
    height = 2.0 if len(having) == 1 else max(1.2, 0.7 + 0.17 * min(len(having), BOXES))
    columns = 3 if len(having) == 1 else 2
    left = 0.64 if len(having) == 1 else 1.5
    with drawing.sheet(len(names), columns, height, left) as (sheet, axes):
        for axis, name in zip(axes, names, strict=False):
            draw(axis, [run for run in having if run.has(f"workers/{name}")][:BOXES], name)
            if len(having) > 1:
                axis.set_ylim(min(len(having), BOXES) + 0.5, 0.5)
    what = (
        "Of the workers, over rounds: the median (line), the middle half (dark) and all (light)."
        if len(having) == 1
        else "Of the workers in the last record of each run: the median, the middle half (box), all."
    )
    caption = f"{what} What is not finite is left out. {_first(having, BOXES)}{conditions(having, [1])}"
    return [Figure("workers", "Spread over the workers", caption, sheet)]


def _over_rounds(axis: Axes, runs: Sequence[Run], name: str) -> None:
    (run,) = runs
    step = -(-run.records // ROWS)
    rows = np.asarray(run.tree["workers"].to_dataset()[name][::step])
    rows = np.where(np.abs(rows) < FINITE, rows, np.nan)
    rounds = run.numbers("metrics/round")[::step]
    drawing.scales(axis)
    low, first, middle, third, high = np.nanquantile(rows, (0, 0.25, 0.5, 0.75, 1), axis=1)
    colour = drawing.COLOURS[0]
    axis.fill_between(rounds, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.fill_between(rounds, first, third, color=colour, alpha=0.4, linewidth=0)
    axis.plot(rounds, middle, color=colour, marker="o" if len(rounds) < 3 else None)
    axis.set(xlabel="round", ylabel=drawing.label(f"{name.replace('_', ' ')} of a worker", 24))


def _at_the_end(axis: Axes, runs: Sequence[Run], name: str) -> None:
    rows = [np.asarray(run.last(f"workers/{name}"), dtype=np.float64) for run in runs]
    drawing.scales(axis)
    axis.boxplot(
        [row[np.abs(row) < FINITE] for row in rows],
        orientation="horizontal",
        whis=(0, 100),
        widths=0.6,
        medianprops={"color": drawing.COLOURS[1]},
    )
    axis.set_yticks(range(1, len(runs) + 1), [drawing.label(run.name, 22) for run in runs])
    axis.set_xlabel(drawing.label(f"{name.replace('_', ' ')} of a worker", 40))


def _first(runs: Sequence[Run], most: int) -> str:
    return f"The first {most} of {len(runs)} runs. " if len(runs) > most else ""
