"""What a run is worth against what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from hpcopt.report.figures import drawing
from hpcopt.report.figures.conditions import OVERCOMMITTED, conditions, overcommitted
from hpcopt.report.figures.drawing import Figure
from hpcopt.report.figures.groups import Curve, Group
from hpcopt.report.thin import thin

ROUND = "metrics/round"
COSTS = {
    ROUND: ("round", "1"),
    "metrics/seconds": ("optimisation time", "s"),
    "metrics/gradients": ("sample gradients", "1"),
    "metrics/bytes_workers": ("bytes between workers", "B"),
    "metrics/bytes_sent": ("bytes between ranks", "B"),
}
WORTH = {
    "loss": "training loss",
    "test_loss": "test loss",
    "gap": "objective minus optimum",
    "accuracy": "accuracy",
}
NO_PANEL = (
    {name.removeprefix("metrics/") for name in COSTS} | set(WORTH) | {"epochs", "passes", "peak_memory"}
)
FIRST = ("consensus", "density", "density_union", "staleness_mean", "staleness_p95", "grad_norm", "distance")
"""of the other metrics"""
PANELS = 11
"""of other metrics, at most"""
POINTS = 6000
"""of all curves of one panel: what a page of many runs has room for"""
FAR = 20.0
"""an axis is logarithmic where its numbers are so many times apart"""
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass
class Drawn:
    """What is known of a figure once its curves are drawn.

    Attributes:
        handles: label -> a line, for the legend.
        notes: what a reader must know about the curves.
    """

    handles: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def against_costs(groups: Sequence[Group]) -> list[Figure]:
    """A figure for each of `WORTH` that a run has, with a panel for each of `COSTS` that rose."""
    figures = []
    for name, words in WORTH.items():
        having = [group for group in groups if group.has(f"metrics/{name}")]
        costs = [cost for cost in COSTS if cost == ROUND or _rose(having, cost)]
        if having:
            panels = [(cost, f"metrics/{name}", words) for cost in costs]
            title = words[0].upper() + words[1:]
            figures.append(_figure(name.replace("_", "-"), title, groups, panels))
    return figures


def others(groups: Sequence[Group]) -> list[Figure]:
    """All other metrics, among them consensus, density and the user's own, against rounds."""
    columns = dict.fromkeys(
        str(name) for group in groups for run in group.runs for name in run.tree["metrics"].data_vars
    )
    left = [
        name for name in columns if name not in NO_PANEL and any(g.has(f"metrics/{name}") for g in groups)
    ]
    if not left:
        return []
    left.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    panels = [(ROUND, f"metrics/{name}", name.replace("_", " ")) for name in left[:PANELS]]
    figure = _figure("metrics", "Other metrics against rounds", groups, panels)
    if len(left) > PANELS:
        rest = f" Not drawn: {', '.join(left[PANELS:])}."
        figure = Figure(figure.name, figure.title, figure.caption + rest, figure.sheet)
    return [figure]


def _figure(name: str, title: str, groups: Sequence[Group], panels: Sequence[tuple[str, str, str]]) -> Figure:
    """Panels of (x, y, what y is)."""
    runs = [run for group in groups for run in group.runs]
    drawn = Drawn()
    one = len({y for _, y, _ in panels}) == 1
    timed = any(x == "metrics/seconds" for x, _, _ in panels)
    warning = OVERCOMMITTED if timed and overcommitted(runs) else None
    with drawing.sheet(len(panels) + 1, sharey=one, warning=warning) as (sheet, axes):
        for at, (axis, (x, y, words)) in enumerate(zip(axes, panels, strict=False)):
            _panel(axis, groups, x, y, drawn)
            if not one or at % 3 == 0:
                axis.set_ylabel(drawing.label(words, 26))
        drawing.legend(axes[len(panels)], list(drawn.handles.values()), list(drawn.handles))
    if max(len(group.runs) for group in groups) > 1:
        drawn.notes.append(
            "Runs that differ only in run.seed are one curve: the median of those that got there, in a band "
            "from the smallest to the largest."
        )
    repeats = [len(group.runs) for group in groups]
    caption = " ".join([*dict.fromkeys(drawn.notes), conditions(runs, repeats)])
    return Figure(name, title, caption, sheet)


def _panel(axis: Axes, groups: Sequence[Group], x: str, y: str, drawn: Drawn) -> None:
    """One column against another, a curve for each group."""
    known = [(at, group) for at, group in enumerate(groups) if group.has(x) and group.has(y)]
    curves = {at: group.curve(x, y) for at, group in known}
    words, unit = COSTS[x]
    factor, prefix = _prefix(unit, curves.values())
    far_apart = _far_apart([curve.x.max() for curve in curves.values()])
    high = _far_apart(np.concatenate([curve.y for curve in curves.values()]))
    drawing.scales(axis, "log" if far_apart else "linear", "log" if high else "linear")
    axis.set_xlabel(words + (f" [{prefix}{unit}]" if unit != "1" else ""))
    if far_apart and any((curve.x <= 0).any() for curve in curves.values()):
        drawn.notes.append("Logarithmic axes of costs have no room for round 0.")
    columns = max(10, POINTS // (4 * len(curves)))
    for at, group in reversed(known):  # the first ones on top of those that are grey
        _curve(axis, at, group, curves[at], factor, columns, far_apart, drawn)
        if found := group.unfit(y):
            _mark(axis, at, group, curves[at].x * factor, y, found, drawn)
    drawn.handles = dict(sorted(drawn.handles.items(), key=lambda item: item[1].get_zorder(), reverse=True))


def _curve(
    axis: Axes, at: int, group: Group, curve: Curve, factor: float, columns: int, log: bool, drawn: Drawn
) -> None:
    with np.errstate(divide="ignore"):
        across = np.log(curve.x) if log else curve.x
    kept = thin(across, curve.y, columns)
    x, y = curve.x[kept] * factor, curve.y[kept]
    if at >= drawing.COLOURED:
        axis.plot(x, y, color=drawing.GREY, linewidth=0.5, zorder=1.5)
        drawn.handles["all others"] = Line2D([], [], color=drawing.GREY, linewidth=0.5, zorder=0)
        drawn.notes.append(f"Only the first {drawing.COLOURED} curves are coloured; tables have all numbers.")
        return
    look = drawing.style(at)
    lone = 1 if len(kept) < 3 else max(1, len(kept) // 7)
    axis.plot(x, y, markevery=(lone * at // drawing.COLOURED, lone), zorder=3 - at / 100, **look)
    if len(group.runs) > 1:
        axis.fill_between(x, curve.low[kept], curve.high[kept], color=look["color"], alpha=0.2, linewidth=0)
    drawn.handles[group.name] = Line2D([], [], zorder=100 - at, **look)


def _mark(axis: Axes, at: int, group: Group, x: Any, y: str, found: tuple[int, int], drawn: Drawn) -> None:
    """Where a curve first has a number that is not finite; and says so."""
    since, count = found
    rounds = np.unique(np.concatenate([run.numbers(ROUND) for run in group.runs]))
    colour = drawing.style(at)["color"] if at < drawing.COLOURED else drawing.GREY
    place = x[np.searchsorted(rounds, since)]
    axis.plot([place], [0.97], "x", color=colour, transform=axis.get_xaxis_transform(), clip_on=False)
    of = f" in {count} of {len(group.runs)} runs" if len(group.runs) > 1 else ""
    what = y.removeprefix("metrics/")
    if sum("not finite" in note for note in drawn.notes) < drawing.COLOURED:
        drawn.notes.append(f"{group.name}: {what} is not finite first in round {since}{of} (×).")


def _rose(groups: Sequence[Group], cost: str) -> bool:
    return any(group.has(cost) and any(run.last(cost) > 0 for run in group.runs) for group in groups)


def _prefix(unit: str, curves: Any) -> tuple[float, str]:
    """By what bytes are multiplied for an axis, and the prefix of the unit then."""
    largest = max((float(curve.x.max()) for curve in curves), default=0.0)
    known = ((1 / size, prefix) for size, prefix in PREFIXES if unit == "B" and largest >= size)
    return next(known, (1.0, ""))


def _far_apart(numbers: Any) -> bool:
    """Whether positive numbers want a logarithmic axis."""
    known = np.asarray(numbers, dtype=np.float64)
    known = known[np.isfinite(known)]
    return bool(len(known) and known.min() > 0 and known.max() > FAR * known.min())
