"""A panel of curves: one column of many runs against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from hpcopt.report.figures import drawing
from hpcopt.report.figures.drawing import COLOURED
from hpcopt.report.figures.groups import Curve, Group
from hpcopt.report.thin import thin

GREY_ONES = 90
"""curves behind the coloured ones, at most"""
FINE, ALL_FINE, COARSE = 300, 500, 6
"""pixel columns that a coloured curve is thinned to, that all of them are, and that a grey one is: a page has
room for no more of many runs"""
FAR = 20.0
"""an axis is logarithmic where its numbers are so many times apart"""
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
MARKS = 10
"""numbers that are not finite which a caption tells one by one"""


@dataclass
class Words:
    """What is to be said beside the panels of a figure.

    Attributes:
        handles: place among the groups -> name, and a line that looks like it.
        notes: what a reader must know; several times the same is once.
    """

    handles: dict[int, tuple[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def legend(self) -> dict[str, Any]:
        """Names and lines, in the order of the groups."""
        return dict(self.handles[at] for at in sorted(self.handles))


class Panel:
    """Curves of groups of runs that have both columns, by their places among all groups."""

    def __init__(self, groups: Sequence[Group], x: str, y: str) -> None:
        known = {at: group for at, group in enumerate(groups) if group.has(x) and group.has(y)}
        self.groups = dict(list(known.items())[: COLOURED + GREY_ONES])
        self.curves = {at: group.curve(x, y) for at, group in self.groups.items()}
        self.left_out = len(known) - len(self.groups)
        self.y = y

    def draw(self, axis: Axes, what: str, unit: str, words: Words) -> None:
        """Draws it; ``what`` and ``unit`` are those of the horizontal axis."""
        ends = np.array([np.nanmax(curve.x) for curve in self.curves.values()])
        log = _far_apart(ends)
        factor, prefix = _prefix(ends) if unit == "B" else (1.0, "")
        high = _far_apart(np.concatenate([curve.y for curve in self.curves.values()]))
        drawing.scales(axis, "log" if log else "linear", "log" if high else "linear")
        axis.set_xlabel(what + (f" [{prefix}{unit}]" if unit != "1" else ""))
        if log and any((curve.x <= 0).any() for curve in self.curves.values()):
            words.notes.append("Logarithmic axes of costs have no room for round 0.")
        coloured = [at for at in self.groups if at < COLOURED]
        for at in coloured:
            columns = min(FINE, ALL_FINE // len(coloured))
            self._coloured(axis, at, _kept(self.curves[at], log, columns), factor, words)
        self._grey(axis, [at for at in self.groups if at >= COLOURED], log, factor, words)
        for at, group in self.groups.items():
            if found := group.unfit(self.y):
                self._mark(axis, at, factor, found, words)

    def _coloured(self, axis: Axes, at: int, kept: NDArray[np.intp], factor: float, words: Words) -> None:
        group, curve, look = self.groups[at], self.curves[at], drawing.style(at)
        x = curve.x[kept] * factor
        every = max(1, len(kept) // 7)
        # the markers of curves that are alike do not hide each other
        axis.plot(x, curve.y[kept], markevery=(every * at // COLOURED, every), zorder=3 - at / 100, **look)
        if len(group.runs) > 1:
            low, high = curve.low[kept], curve.high[kept]
            axis.fill_between(x, low, high, color=look["color"], alpha=0.2, linewidth=0)
        words.handles[at] = group.name, Line2D([], [], **look)

    def _grey(self, axis: Axes, places: Sequence[int], log: bool, factor: float, words: Words) -> None:
        if not places:
            return
        lines = []
        for at in places:
            curve, kept = self.curves[at], _kept(self.curves[at], log, COARSE)
            lines.append(np.column_stack([curve.x[kept] * factor, curve.y[kept]]))
        axis.add_collection(LineCollection(lines, colors=drawing.GREY, linewidths=0.5, zorder=1.5))
        axis.autoscale_view()
        words.handles[COLOURED] = "all others", Line2D([], [], color=drawing.GREY, linewidth=0.5)
        words.notes.append(f"Only the first {COLOURED} curves are coloured; tables have all numbers.")
        if self.left_out:
            words.notes.append(f"Only the first {COLOURED + GREY_ONES} are drawn.")

    def _mark(self, axis: Axes, at: int, factor: float, found: tuple[int, int], words: Words) -> None:
        """Where a curve first has a number that is not finite; and says so."""
        (since, count), group = found, self.groups[at]
        colour = drawing.style(at)["color"] if at < COLOURED else drawing.GREY
        place = self.curves[at].x[np.searchsorted(group.rounds, since)] * factor
        axis.plot([place], [0.97], "x", color=colour, transform=axis.get_xaxis_transform(), clip_on=False)
        of = f" in {count} of {len(group.runs)} runs" if len(group.runs) > 1 else ""
        if sum("×" in note for note in words.notes) < MARKS:
            what = self.y.removeprefix("metrics/")
            words.notes.append(f"{group.name}: {what} is not finite first in round {since}{of} (×).")


def _kept(curve: Curve, log: bool, columns: int) -> NDArray[np.intp]:
    """The points of a curve that are drawn."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return thin(np.log(curve.x) if log else curve.x, curve.y, columns)


def _prefix(ends: NDArray[np.float64]) -> tuple[float, str]:
    """By what bytes are multiplied for an axis, and the prefix of the unit then."""
    known = ((1 / size, prefix) for size, prefix in PREFIXES if (ends >= size).any())
    return next(known, (1.0, ""))


def _far_apart(numbers: NDArray[np.float64]) -> bool:
    """Whether positive numbers want a logarithmic axis."""
    known = numbers[np.isfinite(numbers)]
    return bool(len(known) and known.min() > 0 and known.max() > FAR * known.min())
