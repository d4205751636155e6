"""Runs that differ in their seeds only, as one curve with a band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcopt.report.runs import Alike, Run, alike

FINITE = 1e100
"""what is larger cannot be drawn either"""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """What is drawn of a column against another; all (m,).

    Attributes:
        x, y: medians over the runs.
        low, high: the smallest and the largest of them.
    """

    x: Floats
    y: Floats
    low: Floats
    high: Floats


class Group:
    """Runs with records that belong to one curve, matched by their rounds."""

    def __init__(self, one: Alike) -> None:
        self.name, self.runs = one.name, one.runs

    def has(self, column: str) -> bool:
        """Whether all of them have this column."""
        return all(run.has(column) for run in self.runs)

    def curve(self, x: str, y: str) -> Curve:
        """A column against another one; what is not finite, or too large, is NaN."""
        up = self._rows(y)
        up = np.where(np.abs(up) < FINITE, up, np.nan)
        across = np.nanmedian(self._rows(x), axis=0)
        if len(self.runs) == 1:
            return Curve(across, up[0], up[0], up[0])
        return Curve(across, np.nanmedian(up, axis=0), np.nanmin(up, axis=0), np.nanmax(up, axis=0))

    def unfit(self, column: str) -> tuple[int, int] | None:
        """The first round in which a number is not finite, and in how many runs one is; None: in none.

        NaN before the first number is none: there was nothing to measure yet.
        """
        first = []
        for run in self.runs:
            numbers = run.numbers(column)
            bad = ~(np.abs(numbers) < FINITE) & np.maximum.accumulate(~np.isnan(numbers))
            if bad.any():
                first.append(int(run.numbers("metrics/round")[np.argmax(bad)]))
        return (min(first), len(first)) if first else None

    @cached_property
    def rounds(self) -> NDArray[Any]:
        """The different rounds of which there are records."""
        return np.unique(np.concatenate([run.numbers("metrics/round") for run in self.runs]))

    def _rows(self, column: str) -> Floats:
        """A row for each run, NaN where it has no record."""
        rows = np.full((len(self.runs), len(self.rounds)), np.nan)
        for row, run in zip(rows, self.runs, strict=True):
            row[np.searchsorted(self.rounds, run.numbers("metrics/round"))] = run.numbers(column)
        return rows


def groups(runs: Sequence[Run]) -> list[Group]:
    """Of the runs that have a record."""
    return [Group(one) for one in alike([run for run in runs if run.records])]
