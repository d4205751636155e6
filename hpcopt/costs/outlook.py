"""Predictions of several methods side by side: rows that tables and figures are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpcopt.costs.machine import Machine, load_machine
from hpcopt.costs.prediction import Model, Prediction
from hpcopt.costs.runs import Measured, found
from hpcopt.errors import UserError
from hpcopt.ground.words import counted


@dataclass(frozen=True)
class Outlook:
    """What is predicted.

    Attributes:
        rows: by ranks, and for these by method, the fastest to the target first.
        network: whose times these are, in words.
        target: the loss that methods are ranked by; NaN: by seconds of a round.
        remarks: what has to be said about all of it, a sentence each.
        models: by label, for who wants more.
    """

    rows: list[Prediction]
    network: str
    target: float
    remarks: list[str]
    models: dict[str, Model] = field(default_factory=dict)


def outlook(
    paths: Sequence[Path],
    ranks: Sequence[int],
    machine: str | Path | None = None,
    target: float | None = None,
    ranks_per_host: int | None = None,
) -> Outlook:
    """Predictions for some ranks.

    Args:
        paths: of measured runs, sweeps and scaling studies.
        ranks: for which.
        machine: a machine file, or the name of one that is shipped; None: the runs' own fit.
        target: a loss; None: the smallest that all methods have reached.
        ranks_per_host: None: the machine's, or those of the runs.

    Raises:
        UserError: nothing can be predicted from these; it says why.
    """
    runs, troubles = found(paths)
    loaded, digest = load_machine(machine) if machine is not None else (None, "")
    models = {label: Model(of, loaded, label, ranks_per_host) for label, of in _labelled(runs).items()}
    remarks = [f"left out: {trouble}" for trouble in troubles]
    one_problem = len({run.problem for run in runs}) == 1
    if len(models) > 1 and not one_problem:
        remarks.append("these are different problems: methods are not ranked")
    aim = (target if target is not None else _reached_by_all(models)) if one_problem else math.nan
    rows = []
    for count in ranks:
        of_count = [model.predict(model.layout(count), aim) for model in models.values()]
        rows += sorted(of_count, key=_order) if one_problem else of_count
    remarks += _remarks(rows, models, loaded, aim, one_problem)
    name = next(iter(models.values())).network.name
    network = f"{name} (sha256 {digest[:12]})" if digest else name
    return Outlook(rows, network, aim, remarks, models)


def _labelled(runs: Sequence[Measured]) -> dict[str, list[Measured]]:
    """Runs of one method and setting together, by a name that tells them apart."""
    kinds: dict[str, list[Measured]] = {}
    for run in runs:
        kinds.setdefault(run.kind, []).append(run)
    names = [of[0].method for of in kinds.values()]
    labels = [
        name if names.count(name) == 1 else f"{name} ({of[0].path.parent.name})"
        for name, of in zip(names, kinds.values(), strict=True)
    ]
    return dict(zip(labels, kinds.values(), strict=True))


def _reached_by_all(models: dict[str, Model]) -> float:
    """The smallest loss that every method has come down to; of those that came down at all."""
    best = {
        label: min((float(np.nanmin(run.curve[1])), -float(run.curve[1][0])) for run in model.runs)
        for label, model in models.items()
    }
    lower = [loss for loss, start in best.values() if loss < -start]
    return max(lower, default=math.nan)


def _order(row: Prediction) -> tuple[bool, float]:
    return (math.isnan(row.target), row.seconds if math.isnan(row.target) else row.target)


def _remarks(
    rows: Sequence[Prediction],
    models: dict[str, Model],
    machine: Machine | None,
    target: float,
    one_problem: bool,
) -> list[str]:
    said = []
    for count in sorted({row.on.ranks for row in rows}):
        of_count = [row for row in rows if row.on.ranks == count]
        timed = [row for row in of_count if not math.isnan(row.target)]
        if len(models) > 1 and one_problem and timed:
            best, others = timed[0], timed[1:]
            close = [
                r.method
                for r in others
                if r.target / r.seconds * r.low <= best.target / best.seconds * best.high
            ]
            word = "dense is best here" if best.dense else f"{best.method} is best here"
            said.append(
                f"{counted(count, 'rank')}: {word} "
                f"({best.method}, {best.target:.3g} s to a loss of {target:.4g})"
                + (f"; within the intervals: {', '.join(close)}" if close else "")
            )
    if any(row.grown for row in rows):
        said.append(
            "above N ranks N grows with the ranks, at the same rows per worker: more data, and the rounds to "
            "the target are those of the measured N"
        )
    for model in models.values():
        if any(run.overlaps for run in model.runs):
            said.append(
                f"{model.label}: "
                + (
                    "as much as fits is taken to travel while gradients are computed; the upper end of the "
                    "interval is without that"
                    if machine
                    else "its ports' seconds are what was left to wait for"
                )
            )
    if any(run.crowded for model in models.values() for run in model.runs):
        said.append("in some of the runs ranks shared cores: times of those are distorted")
    missed = list(dict.fromkeys(row.method for row in rows if math.isnan(row.target)))
    if missed and not math.isnan(target):
        said.append(f"never reached a loss of {target:.4g}: {', '.join(missed)}")
    return said


def parse_ranks(text: str) -> list[int]:
    """Numbers of ranks, "64,1024".

    Raises:
        UserError: they are none.
    """
    try:
        ranks = [int(word) for word in text.split(",")]
    except ValueError:
        ranks = []
    if not ranks or min(ranks) < 1 or max(ranks) > 10_000_000:
        raise UserError(f"--ranks {text}: allowed are whole numbers of ranks from 1 on, like 64,1024,8192")
    return ranks
