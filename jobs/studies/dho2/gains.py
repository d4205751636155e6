"""What curvature by itself gains: the automatic lines against their bases, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jobs.studies.dho2.cases import TARGETS, Plan, Problem
from jobs.studies.dho2.lines import BASES, Line
from jobs.studies.markdown import table
from jobs.studies.statistics import crossing, interval, spread
from jobs.studies.study import Case, Study

TEXT = """Automatic lines against their bases on the same seed, at the base's learning rate: how many times
fewer gradients, and seconds, until the base's own loss after a part of its rounds; means are geometric, with
their 95 % intervals (Student's t). «Itself»: the same ratio of the base on this seed and on the next, in a
ring. Between two records the logarithm of the loss is taken to be linear. Curvature: part of all gradients
that the base does not compute. Adopted: by how many seeds, and at which part of all records."""


def section(plan: Plan, problem: Problem) -> str:
    """The table of a problem."""
    head = ["base", "target", "fewer gradients", "itself", "fewer seconds", "itself", "curvature", "adopted"]
    rows = [row for line, base in BASES.items() for row in _rows(plan, problem, line, base)]
    return f"{TEXT}\n\n{table(head, rows)}"


def _rows(plan: Plan, problem: Problem, line: Line, base: Line) -> list[list[str]]:
    study = plan.study
    autos, bases = (plan.finals(problem, each, every=True) for each in (line, base))
    if not bases or len(study.finished([*autos, *bases])) < len(autos) + len(bases):
        return [[base.label, *["–"] * 7]]
    ends = [study.column(cases, "gradients") for cases in (bases, autos)]
    share = [100 * (1 - first / second) for first, second in zip(*ends, strict=True)]
    beside = [f"{spread(share, '.1f')} %", _adopted(study, autos)]
    rows = []
    for part in TARGETS:
        targets = [_loss_after(study, case, part) for case in bases]
        cells = []
        for metric in ("gradients", "seconds"):
            own = [spent(study, *item, metric) for item in zip(bases, targets, strict=True)]
            theirs = [spent(study, *item, metric) for item in zip(autos, targets, strict=True)]
            others = [
                spent(study, *item, metric) for item in zip([*bases[1:], bases[0]], targets, strict=True)
            ]
            cells += [_ratio(own, theirs), _ratio(own, others)]
        rows.append([base.label, f"{part:.0%}", *cells, *beside])
    return rows


def _log_losses(study: Study, case: Case) -> list[float]:
    return [math.log(loss) if loss > 0 else math.nan for loss in study.series(case, "loss")]


def _loss_after(study: Study, case: Case, part: float) -> float:
    """The logarithm of the loss after a part of all rounds."""
    rounds = study.series(case, "round")
    return float(np.interp(part * rounds[-1], rounds, _log_losses(study, case)))


def spent(study: Study, case: Case, target: float, metric: str) -> float:
    """A metric when a run first had a loss, of which the logarithm is given; inf: never, nan: no run."""
    return crossing(_log_losses(study, case), study.series(case, metric), target)


def _ratio(first: Sequence[float], second: Sequence[float]) -> str:
    """Geometric mean of first / second, with its interval."""
    missed = sum(map(math.isinf, second))
    if missed:
        return f"missed by {missed} of {len(second)}"
    found = interval(np.log(first).tolist(), np.log(second).tolist())
    if found is None:
        return "–"
    mean, low, high = map(math.exp, found)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _adopted(study: Study, cases: Sequence[Case]) -> str:
    """How many runs made hybrid steps at all, and at how many of all records."""
    every = [[not math.isnan(age) for age in study.series(case, "spectrum_age")] for case in cases]
    records = [value for series in every for value in series]
    return f"{sum(map(any, every))} of {len(every)}, {np.mean(records):.0%}"
