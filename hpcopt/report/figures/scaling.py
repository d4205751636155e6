"""How far a run scales: time, speed-up, efficiency, serial fraction, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from hpcopt.report import statistics
from hpcopt.report.figures import drawing
from hpcopt.report.figures.conditions import OVERCOMMITTED, in_words
from hpcopt.report.figures.drawing import Figure
from hpcopt.report.runs import Scaling
from hpcopt.report.statistics import Estimate, Point
from hpcopt.report.tables.costs import Times

DOTS = 60
"""raw samples of one number of ranks that are drawn, about"""
RAW = "#9A9A9A"
IDEAL: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 0.8}
SHARES = ("communication", "waiting", "imbalance")

Samples = Mapping[int, NDArray[np.float64]]


def scaling(study: Scaling, name: str) -> Figure:
    """One study: time, speed-up, efficiency, serial fraction and shares against ranks."""
    samples = study.tree["samples"]
    column = {str(key): np.asarray(values) for key, values in samples.data_vars.items()}
    ranks, mode = column["ranks"].astype(int), study.tree.attrs["mode"]
    times = statistics.by(ranks, statistics.seconds_of_a_round(column["seconds"], column["rounds"]))
    points = statistics.scaling(times, mode)
    crowded = set(ranks[column["overcommitted"] > 0].tolist())
    with drawing.sheet(6, warning=OVERCOMMITTED if crowded else None) as (sheet, axes):
        handles = _times(axes, points, times, mode, crowded)
        handles |= _shares(axes[4], points, shares(study))
        drawing.legend(axes[5], list(handles.values()), list(handles))
    return Figure(name, f"Scaling: {study.name}", _caption(study, column, points, times), sheet)


def shares(study: Scaling) -> dict[str, dict[int, Estimate]]:
    """Of each of `SHARES`, ranks -> the median over the samples."""
    samples = study.tree["samples"]
    phases = [str(phase) for phase in np.asarray(samples["phase"])]
    seconds = np.asarray(samples["seconds"])
    # NaN: no such phase in that launch
    largest, smallest, mean = (
        np.nan_to_num(np.asarray(samples[f"phase_seconds{which}"])) for which in ("", "_min", "_mean")
    )
    found = [
        Times.of(phases, largest[at], smallest[at], mean[at], float(total))
        for at, total in enumerate(seconds)
    ]
    numbers = {
        "communication": [one.share for one in found],
        "waiting": [one.waiting / one.seconds if one.seconds else np.nan for one in found],
        "imbalance": [one.imbalance for one in found],
    }
    ranks = np.asarray(samples["ranks"])
    return {
        name: {count: statistics.median(some) for count, some in statistics.by(ranks, values).items()}
        for name, values in numbers.items()
    }


def _times(
    axes: Sequence[Axes], points: Sequence[Point], times: Samples, mode: str, crowded: set[int]
) -> dict[str, Any]:
    """Time, speed-up, efficiency and serial fraction; gives what the legend says."""
    ranks = np.array([point.ranks for point in points])
    p = ranks / ranks[0]
    base = points[0].time.value
    work = 1.0 if mode == "strong" else p
    with np.errstate(divide="ignore"):
        faster = [
            base / some * w for some, w in zip(times.values(), p / p if mode == "strong" else p, strict=True)
        ]
    panels: list[tuple[str, Literal["linear", "log"], list[Estimate], Any, list[Any] | None]] = [
        (
            "time of a round [s]",
            "log" if mode == "strong" else "linear",
            [point.time for point in points],
            base * work / p,
            list(times.values()),
        ),
        ("speed-up", "log", [point.speedup for point in points], p, faster),
        (
            "efficiency",
            "linear",
            [point.efficiency for point in points],
            np.ones_like(p),
            [some / one for some, one in zip(faster, p, strict=True)],
        ),
        ("serial fraction", "linear", [point.serial for point in points], None, None),
    ]
    for axis, (words, scale, estimates, ideal, raw) in zip(axes, panels, strict=False):
        _axis(axis, ranks, words, scale)
        for at, some in zip(ranks, raw or [], strict=False):
            few = some[:: -(-len(some) // DOTS)]
            axis.plot(
                at * np.linspace(0.94, 1.06, len(few) + 2)[1:-1], few, ".", color=RAW, markersize=2, zorder=2
            )
        if ideal is not None:
            axis.plot(ranks, ideal, **IDEAL, zorder=1.9)
        _medians(axis, ranks, estimates, drawing.style(0), crowded)
    if mode == "weak":
        axes[3].set_axis_off()
        axes[3].text(
            0.5,
            0.5,
            "no serial fraction:\nthe work grows with the ranks",
            ha="center",
            transform=axes[3].transAxes,
        )
    axes[2].set_ylim(0, None)
    for point in points:
        if point.beyond:
            at = (point.ranks, point.speedup.value)
            axes[1].annotate("beyond\nideal", at, (0, 7), textcoords="offset points", ha="center", fontsize=6)
    look = drawing.style(0)
    handles = {
        "median, with its interval": Line2D([], [], **look),
        "samples": Line2D([], [], color=RAW, marker=".", linestyle="none"),
        "ideal": Line2D([], [], **IDEAL),
    }
    if crowded:
        handles["more ranks than cores"] = Line2D(
            [], [], **look | {"linestyle": "none", "markerfacecolor": "white"}
        )
    return handles


def _shares(
    axis: Axes, points: Sequence[Point], known: Mapping[str, Mapping[int, Estimate]]
) -> dict[str, Any]:
    ranks = np.array([point.ranks for point in points])
    _axis(axis, ranks, "share, imbalance [%]", "linear")
    handles = {}
    for at, name in enumerate(SHARES):
        look = drawing.style(at + 1)
        _medians(axis, ranks, [known[name][count].times(100) for count in ranks.tolist()], look, set())
        handles[name if name == "imbalance" else f"{name} share"] = Line2D([], [], **look)
    axis.set_ylim(0, None)
    return handles


def _axis(axis: Axes, ranks: NDArray[np.int64], words: str, scale: Literal["linear", "log"]) -> None:
    drawing.scales(axis, "log", scale)
    shown = ranks[:: -(-len(ranks) // 6)].tolist()
    axis.set_xticks(shown, [str(one) for one in shown])
    axis.set_xticks([], minor=True)
    axis.set(xlim=(ranks[0] / 1.25, ranks[-1] * 1.25), xlabel="ranks P", ylabel=words)


def _medians(
    axis: Axes,
    ranks: NDArray[np.int64],
    estimates: Sequence[Estimate],
    look: dict[str, Any],
    crowded: set[int],
) -> None:
    """A line through medians, with intervals; hollow where ranks exceed cores."""
    value, low, high = np.array([[one.value, one.low, one.high] for one in estimates]).T
    value, low, high = (np.where(np.isfinite(one), one, np.nan) for one in (value, low, high))
    bars = np.clip([value - low, high - value], 0, None)
    axis.errorbar(ranks, value, bars, **look, capsize=2.5, zorder=3)
    hollow = np.isin(ranks, list(crowded))
    axis.plot(
        ranks[hollow], value[hollow], **look | {"linestyle": "none", "markerfacecolor": "white"}, zorder=3.5
    )


def _caption(study: Scaling, column: Mapping[str, Any], points: Sequence[Point], times: Samples) -> str:
    attrs = study.tree.attrs
    weak = attrs["mode"] == "weak"
    sure = [str(point.ranks) for point in points if point.beyond]
    ranges = {point.time.interval: point.ranks for point in points if not point.time.confident}
    repeats = [len(np.unique(column["repeat"][column["ranks"] == point.ranks])) for point in points]
    drawn = any(len(some) > DOTS for some in times.values())
    said = [
        f"{attrs['mode'].capitalize()} scaling of {attrs.get('method', '?')} on {attrs.get('problem', '?')}.",
        "Medians over blocks of rounds, of all repeats, of the slowest rank's seconds of a round; bars: "
        f"{statistics.CONFIDENCE:.0%} intervals of the median by order statistics"
        + (f", but for too few samples ({'; '.join(ranges)})." if ranges else "."),
        "" if weak else "Serial fraction: that of Karp and Flatt, of the speed-up.",
        "Speed-up and efficiency: ratios of medians, against the fewest ranks; their bars divide the ends "
        "of both intervals crosswise."
        + (" The speed-up counts the work, which grows with the ranks." if weak else ""),
        f"Beyond ideal on {', '.join(sure)} ranks, with all of the interval: more cache, say."
        if sure
        else "",
        "Of more samples, some are drawn." if drawn else "",
        in_words(column["ranks"], column["workers"], column["hosts"], column["cores"], repeats),
    ]
    return " ".join(part for part in said if part)
