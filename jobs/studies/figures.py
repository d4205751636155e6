"""Figures of studies: curves in panels, as SVG whose bytes depend on the numbers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Curve = tuple[Sequence[float], Sequence[float]]


def curves(
    file: Path,
    panels: Sequence[Sequence[tuple[str, Mapping[str, Curve]]]],
    x: str,
    y: str,
    floor: float | None = None,
) -> None:
    """Rows of panels, all with the same logarithmic vertical axis.

    Args:
        file: .svg to write.
        panels: rows of (title, label -> (x, y)); a label has the same colour in all of them.
        x, y: what the axes are.
        floor: where the vertical axes end, below 1; None: where the curves do.
    """
    import matplotlib
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(label for row in panels for _, panel in row for label in panel))
    wide = max(len(row) for row in panels)
    size = (3.2 * wide, 2.4 * len(panels) + 0.8)
    look: dict[Any, Any] = {"svg.hashsalt": file.name, "svg.fonttype": "none", "font.size": 8}
    with matplotlib.rc_context(look):
        figure = Figure(figsize=size)
        axes = figure.subplots(len(panels), wide, squeeze=False, sharey=True)
        for row, (drawn, axis_row) in enumerate(zip(panels, axes, strict=True)):
            for (title, panel), axis in zip(drawn, axis_row, strict=True):
                axis.set(title=title, yscale="log", xlabel=x if row == len(panels) - 1 else None)
                for label, (at, values) in panel.items():
                    number = labels.index(label)
                    axis.plot(
                        at, values, label=label, color=f"C{number % 10}", ls="-" if number < 10 else "--"
                    )
                axis.grid(alpha=0.3)
                if floor is not None:
                    axis.set_ylim(floor, 1)
            axis_row[0].set_ylabel(y)
        lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
        figure.legend(lines.values(), lines.keys(), loc="lower center", ncols=4, frameon=False)
        figure.tight_layout(rect=(0, 0.8 / size[1], 1, 1))
        figure.savefig(file, metadata={"Date": None})
