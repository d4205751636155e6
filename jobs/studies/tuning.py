"""Learning rates: trials on a grid, more of them where the best lies at its edge, and the best of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.studies.study import Case, Study


@dataclass(frozen=True)
class Variant:
    """A method with its settings.

    Attributes:
        name: in the names of directories.
        label: in tables.
        settings: "table.key" -> value.
    """

    name: str
    label: str
    settings: dict[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Tuning:
    """The trials of one method on one problem. Only the training loss has a say, no test row.

    Attributes:
        study: with the results.
        case: learning rate -> its run; None while the other settings of that are not known.
        grid: the rates to begin with, ascending.
        factor: between a rate at an edge and the one tried beyond it.
        extensions: how often the grid grows by one rate.
        digits: significant ones of a rate beyond the grid.
    """

    study: Study
    case: Callable[[float], Case | None]
    grid: tuple[float, ...]
    factor: float
    extensions: int
    digits: int = 3

    def trials(self) -> dict[float, float]:
        """Rates to try, as far as finished runs tell -> loss at the end: inf where a run diverged, nan where
        it is missing."""
        found = {lr: self._loss(lr) for lr in self.grid}
        for _ in range(self.extensions):
            rates, best = list(found), _best(found)
            if best is not None and best in (rates[0], rates[-1]):
                lr = best / self.factor if best == rates[0] else best * self.factor
                lr = float(f"{lr:.{self.digits}g}")
                found = dict(sorted({**found, lr: self._loss(lr)}.items()))
        return found

    def rate(self) -> float | None:
        """The one with the lowest loss; None while runs are missing."""
        return _best(self.trials())

    def _loss(self, lr: float) -> float:
        case = self.case(lr)
        losses = self.study.series(case, "loss") if case else []
        if not losses:
            return math.nan
        return losses[-1] if math.isfinite(losses[-1]) else math.inf


def _best(trials: dict[float, float]) -> float | None:
    return None if any(map(math.isnan, trials.values())) else min(trials, key=lambda lr: trials[lr])


def tune(study: Study, tunings: Sequence[Tuning]) -> None:
    """Runs the trials that are missing, and those that they call for."""
    for _ in range(1 + max(tuning.extensions for tuning in tunings)):
        cases = [tuning.case(lr) for tuning in tunings for lr in tuning.trials()]
        study.run([case for case in cases if case is not None])
