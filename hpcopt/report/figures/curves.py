"""What a run is worth against what it cost."""

from __future__ import annotations

from collections.abc import Sequence

from hpcopt.report.figures import drawing
from hpcopt.report.figures.conditions import OVERCOMMITTED, conditions, overcommitted
from hpcopt.report.figures.drawing import Figure
from hpcopt.report.figures.groups import Group
from hpcopt.report.figures.panel import Panel, Words

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
    words = Words()
    one = len({y for _, y, _ in panels}) == 1
    timed = any(x == "metrics/seconds" for x, _, _ in panels)
    warning = OVERCOMMITTED if timed and overcommitted(runs) else None
    with drawing.sheet(len(panels) + 1, sharey=one, warning=warning) as (sheet, axes):
        for at, (axis, (x, y, what)) in enumerate(zip(axes, panels, strict=False)):
            Panel(groups, x, y).draw(axis, *COSTS[x], words)
            if not one or at % 3 == 0:
                axis.set_ylabel(drawing.label(what, 22))
        handles = words.legend()
        drawing.legend(axes[len(panels)], list(handles.values()), list(handles))
    if max(len(group.runs) for group in groups) > 1:
        words.notes.append(
            "Runs that differ only in seeds are one curve: the median of those that got there, in a band "
            "from the smallest to the largest."
        )
    repeats = [len(group.runs) for group in groups]
    caption = " ".join([*dict.fromkeys(words.notes), conditions(runs, repeats)])
    return Figure(name, title, caption, sheet)


def _rose(groups: Sequence[Group], cost: str) -> bool:
    return any(group.has(cost) and any(run.last(cost) > 0 for run in group.runs) for group in groups)
