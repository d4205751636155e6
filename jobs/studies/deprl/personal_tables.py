"""The tables of `personal`: accuracies, their spread, paired differences, and which claims hold."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.studies.deprl.personal import COLUMNS, COMPARED, METHODS, ROUNDS, SEEDS, case, cases, methods, seeds
from jobs.studies.markdown import table
from jobs.studies.statistics import interval, paired, spread
from jobs.studies.study import Study

BEFORE, GLOBAL = "before_mixing_", "global_"
ONE_MODEL = ("dpsgd", "fedavg", "ours", "dpsgd-10")
"""methods whose workers are to agree on all of the model, so that its mean says something"""


@dataclass(frozen=True)
class Row:
    """What a method's accuracies are measured of.

    Attributes:
        method: its name.
        prefix: of its metrics: "" for the workers' models at the end, `BEFORE` or `GLOBAL`.
    """

    method: str
    prefix: str = ""

    @property
    def label(self) -> str:
        """In the tables."""
        return METHODS[self.method].label + (", before mixing" if self.prefix == BEFORE else "")


@dataclass(frozen=True)
class Claim:
    """By how much DePRL on the exponential graph is expected to be better.

    Attributes:
        column: where.
        other: than what.
        points: the mean difference in accuracy, at least.
    """

    column: str
    other: Row
    points: float


CLAIMS = [
    *(Claim(column, Row(other), 4.0) for column in ("rich-0.1", "poor-0.1") for other in ("dpsgd", "fedavg")),
    Claim("poor-0.5", Row("local"), 2.0),
]


def section(study: Study, workers: int) -> str:
    """All tables of one number of workers."""
    head, rows = ["method", *(column.label for column in COLUMNS.values())], _rows(workers)
    one_model = [Row(name, GLOBAL) for name in methods(workers) if name in ONE_MODEL]

    def over_columns(rows: Sequence[Row], cell: Callable[[Study, int, str, Row], str]) -> str:
        return table(head, ([row.label, *(cell(study, workers, c, row) for c in COLUMNS)] for row in rows))

    parts = [
        f"## Personalised accuracy, {workers} workers, seeds {_range(SEEDS)}{_more(workers)}",
        study.about(cases(workers)),
        f"Accuracy % on the worker's own test rows at round {ROUNDS[workers]}, mean over the workers. Before "
        "mixing:\nof the same run's models just before they were last averaged.",
        over_columns(rows, _mean),
        "How far the workers are apart: standard deviation of their accuracies, points, mean over the seeds:",
        over_columns(rows, _apart),
        "Accuracy % of the mean of the workers' models, on all test rows:",
        over_columns(one_model, _mean),
    ]
    for ours in (Row(name) for name in COMPARED if name in methods(workers)):
        parts += [f"{ours.label} minus the others, points, with 95 % intervals:"]
        parts += [over_columns([row for row in rows if row != ours], _less(ours))]
    claims = table(
        [
            "DePRL, exponential, is better",
            "where",
            "by at least",
            "difference",
            "holds",
            "all of the interval",
        ],
        (_claim(study, workers, claim) for claim in CLAIMS),
    )
    return "\n\n".join([*parts, "Claims:", claims])


def _more(workers: int) -> str:
    """Which columns have more seeds."""
    return "".join(
        f" ({column.label}: {_range(seeds(workers, name))})"
        for name, column in COLUMNS.items()
        if seeds(workers, name) != SEEDS
    )


def _range(numbers: Sequence[int]) -> str:
    return f"{numbers[0]} to {numbers[-1]}"


def _rows(workers: int) -> list[Row]:
    """Every method, and what it was before mixing below it."""
    kept = [name for name in methods(workers) if METHODS[name].settings.get("method.before_mixing")]
    return [
        Row(name, prefix)
        for name in methods(workers)
        for prefix in ("", BEFORE)
        if prefix == "" or name in kept
    ]


def accuracies(study: Study, workers: int, column: str, row: Row) -> list[float]:
    """In %, of every seed; nan where a run is missing."""
    runs = [case(workers, column, row.method, seed) for seed in seeds(workers, column)]
    return [100 * value for value in study.column(runs, f"{row.prefix}accuracy")]


def _mean(study: Study, workers: int, column: str, row: Row) -> str:
    return spread(_known(accuracies(study, workers, column, row)))


def _apart(study: Study, workers: int, column: str, row: Row) -> str:
    found = []
    for seed in seeds(workers, column):
        data = study.data(case(workers, column, row.method, seed))
        if data is not None:
            last = [np.asarray(data[f"workers/{row.prefix}{name}"])[-1] for name in ("accuracy", "test_loss")]
            # a worker without test rows has 0 for both, and no say
            found.append(float(100 * last[0][last[1] > 0].std(ddof=1)))
    return format(statistics.fmean(found), ".1f") if found else "–"


def _less(ours: Row) -> Callable[[Study, int, str, Row], str]:
    """A cell: the difference of a row from another."""
    return lambda study, workers, column, row: paired(*_pairs(study, workers, column, ours, row))


def _claim(study: Study, workers: int, claim: Claim) -> list[str]:
    first, second = _pairs(study, workers, claim.column, Row("deprl"), claim.other)
    found = interval(first, second)
    verdicts = ["–"] * 2 if found is None else ["yes" if v >= claim.points else "no" for v in found[:2]]
    where = COLUMNS[claim.column].label
    shown = paired(first, second)
    return [f"than {claim.other.label}", where, f"{claim.points:g} points", shown, *verdicts]


def _pairs(study: Study, workers: int, column: str, a: Row, b: Row) -> tuple[list[float], list[float]]:
    """The accuracies of two rows, of the seeds with which both are finished."""
    both = zip(*(accuracies(study, workers, column, row) for row in (a, b)), strict=True)
    known = [pair for pair in both if not any(map(math.isnan, pair))]
    return [pair[0] for pair in known], [pair[1] for pair in known]


def _known(values: list[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]
