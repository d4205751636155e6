"""Figures of runs and of scaling studies, as SVG for a page and as PNG."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hpcopt.report.figures import curves, kept, phases, scaling
from hpcopt.report.figures.drawing import Figure as Figure
from hpcopt.report.figures.groups import groups
from hpcopt.report.runs import Found


def for_report(found: Found) -> list[Figure]:
    """All that there is something to show on; runs without a record are on none."""
    runs = [run for run in found.runs if run.records]
    figures: list[Figure] = []
    if runs:
        together = groups(runs)
        figures += curves.against_costs(together)
        figures += phases.phases(runs)
        figures += curves.others(together)
        figures += kept.staleness(runs) + kept.spectrum(runs) + kept.workers(runs)
    return figures + [scaling.scaling(study, f"scaling-{at}") for at, study in enumerate(found.scalings)]


def save_png(figures: Iterable[Figure], directory: Path) -> list[Path]:
    """Writes NAME.png of each figure into a directory, which is made where there is none; gives the files."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in figures:
        written.append(directory / f"{figure.name}.png")
        figure.save_png(written[-1])
    return written
