"""Where the ranks' time went."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from hpcopt.ground.terminal import printable
from hpcopt.report.figures import drawing
from hpcopt.report.figures.conditions import OVERCOMMITTED, conditions, overcommitted
from hpcopt.report.figures.drawing import Figure
from hpcopt.report.runs import Run
from hpcopt.report.tables.costs import COMPUTE, NO_PORTS, times

RUNS = 24
"""bars, at most"""
PORTS = 5
"""that have a colour of their own: those where most time went"""
OTHERS = "other ports"
BESIDE = {"evaluation": "#D8D8D8", "files": "#8C8C8C", "curvature ranks": "#F0E442"}
HATCHES = ("////", "\\\\\\\\", "xxxx", "||||", "----", "++++")
SHARES = {"imbalance": 1.17, "commu-\nnication": 1.37, "waiting": 1.55}
"""written beside the bars; where they end, the bars being as long as 1"""

Part = tuple[str, str, str, str]
"""label, face colour, edge colour, hatch"""


def phases(runs: Sequence[Run]) -> list[Figure]:
    """A bar for each run: computing, each port's communication and waiting, evaluation, files."""
    having = [run for run in runs if run.last("phases/seconds") is not None]
    drawn = having[:RUNS]
    if not drawn:
        return []
    parts = _parts(drawn)
    warning = OVERCOMMITTED if overcommitted(drawn) else None
    height = 1.1 + 0.24 * len(drawn) + 0.15 * (-(-len(parts) // 3) + 1)
    with drawing.sheet(1, 1, height, left=1.9, warning=warning) as (sheet, (axis,)):
        place = axis.get_position()
        legend = 0.15 * (-(-len(parts) // 3) + 1) / sheet.get_figheight()
        axis.set_position(
            (place.x0, place.y0 + legend, place.width * 0.62, place.height - legend - 0.15 / height)
        )
        for at, run in enumerate(drawn):
            _bar(axis, at, run, parts)
        for words, across in SHARES.items():
            axis.text(
                across,
                -0.75,
                words,
                transform=axis.get_yaxis_transform(),
                va="bottom",
                ha="right",
                fontsize=7,
            )
        axis.set_yticks(range(len(drawn)), [drawing.label(run.name, 28) for run in drawn])
        axis.set_ylim(len(drawn) - 0.4, -0.6)
        axis.set_xlabel("mean over the ranks of the time since the start [s]")
        axis.grid(axis="y", visible=False)
        handles, labels = axis.get_legend_handles_labels()
        first = dict(zip(reversed(labels), reversed(handles), strict=True))
        order = [part[0] for part in parts if part[0] in first]
        sheet.legend([first[one] for one in order], order, loc="lower center", ncols=3, handlelength=2.5)
    caption = (
        "Time per phase, stacked. Communication of a port is the smallest of the ranks' seconds in it, for "
        "the last one to come waits for nobody; waiting is the mean over the ranks less that; imbalance is "
        "the computing of the slowest rank over the mean, less 1; shares are of the slowest rank's clock, "
        "which stands still for evaluation and files. "
        + (f"The first {RUNS} of {len(having)} runs. " if len(having) > RUNS else "")
        + conditions(drawn, [1])
    )
    return [Figure("phases", "Time per phase", caption, sheet)]


def _parts(runs: Sequence[Run]) -> list[Part]:
    """Of all bars, in the order in which they are stacked."""
    seconds: dict[str, float] = {}
    for run in runs:
        for phase, mean in zip(_names(run), run.last("phases/seconds_mean"), strict=True):
            if phase not in NO_PORTS:
                seconds[phase] = seconds.get(phase, 0.0) + float(np.nan_to_num(mean))
    ports = sorted((port for port in seconds if seconds[port] > 0), key=lambda port: -seconds[port])
    names = [*ports[:PORTS], *([OTHERS] if len(ports) > PORTS else [])]
    parts: list[Part] = [(COMPUTE, drawing.COLOURS[0], drawing.COLOURS[0], "")]
    for port, colour, hatch in zip(names, drawing.COLOURS[1:], HATCHES, strict=False):
        parts += [(port, colour, "black", ""), (f"{port}: waiting", "white", colour, hatch)]
    return parts + [(name, colour, "black", "") for name, colour in BESIDE.items()]


def _bar(axis: Axes, at: int, run: Run, parts: Sequence[Part]) -> None:
    """The stack of one run, with its shares in words."""
    known = {label for label, *_ in parts}
    lengths: dict[str, float] = {}
    for phase, mean, smallest in zip(
        _names(run), run.last("phases/seconds_mean"), run.last("phases/seconds_min"), strict=True
    ):
        if phase in NO_PORTS:
            pieces = {phase: float(mean)}
        else:
            port = phase if phase in known else OTHERS
            pieces = {port: float(smallest), f"{port}: waiting": float(mean - smallest)}
        for name, piece in pieces.items():
            lengths[name] = lengths.get(name, 0.0) + float(np.nan_to_num(piece))
    start = 0.0
    for name, face, edge, hatch in parts:
        if length := max(lengths.get(name, 0.0), 0.0):
            axis.barh(
                at, length, 0.7, start, facecolor=face, edgecolor=edge, hatch=hatch, linewidth=0.4, label=name
            )
            start += length
    found = times(run)
    assert found is not None
    shares = (found.imbalance, found.share, found.waiting / found.seconds if found.seconds else np.nan)
    for place, share in zip(SHARES.values(), shares, strict=True):
        words = f"{share:.0%}" if np.isfinite(share) else "unknown"
        axis.text(place, at, words, transform=axis.get_yaxis_transform(), va="center", ha="right")


def _names(run: Run) -> list[str]:
    return [printable(name) for name in run.labels("phases", "phase")]
