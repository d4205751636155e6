"""The tables of RESULTS.md."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence

from jobs.studies.delayed.cases import GRADIENTS, ITERATIONS, ROWS, TAUS, WORKERS, Group, Problem, Protocol
from jobs.studies.markdown import table
from jobs.studies.statistics import paired, power
from jobs.studies.study import Study

GAP = "generalisation_gap"
PROTOCOLS: dict[Protocol, str] = {
    "iterations": "equal iterations",
    "gradients": "equal gradients",
    "loss": "equal training loss",
}
SCHEDULE = f"""{WORKERS} workers; worker n's gradient arrives in the rounds t with (t − n) mod τ = 0 and is
added at its own rate. τ = 0: all {WORKERS} in every round, none of them late. Equal iterations: after
{ITERATIONS} rounds. Equal gradients: after {GRADIENTS:,} mini-batches of 16 rows. Equal training loss: where
it first is as small as the largest that any τ has after that many gradients, seed by seed."""
EXACT = f"""Every round applies the mean of all {WORKERS} gradients, each of the model of τ rounds before, so
equal iterations are equal gradients ({GRADIENTS // WORKERS} rounds, {GRADIENTS:,} gradients)."""
TWINS = """Two models that differ in one of the training rows, trained on the same mini-batches. Mean absolute
Δf: the mean of |f(x; z) − f(x'; z)| over 2000 test rows. Δ at the rows: f(x; z') − f(x'; z') and
f(x'; z) − f(x; z), where only x was trained on the row z and only x' on z'; the mean of both, whose
expectation is the gap."""
ROWS_TEXT = """The gap for other numbers n of training rows; b: of gap ∝ n^b, by least squares of logarithms
over all runs."""
RATES = """The gap at other rates: a quarter of it, and the largest that the paper's condition for stability
allows, 1/(20 L (τ + 1)), L the largest eigenvalue of the Hessian of all rows at the start."""


def section(study: Study, problem: Problem, found: dict[str, Group]) -> list[str]:
    """A problem's tables."""
    every = [case for group in found.values() for case in group.cases()]
    schedule, exact = found["schedule"], found["exact"]
    return [
        f"## {problem.label}",
        textwrap.fill(study.about(every), 120),
        f"### On the schedule, η = {problem.lr:g}",
        SCHEDULE,
        _against_tau(study, schedule, ("iterations", "gradients", "loss")),
        _effects(study, schedule, ("iterations", "gradients", "loss")),
        f"### All equally late, η = {problem.exact_lr:g}",
        EXACT,
        _against_tau(study, exact, ("gradients", "loss")),
        _effects(study, exact, ("gradients", "loss")),
        f"![gap]({problem.name}.svg)",
        "### Average stability, on the schedule",
        TWINS,
        _twins(study, found["twins"]),
        "### Rows, on the schedule",
        ROWS_TEXT,
        _rows(study, found),
        "### Rates, on the schedule",
        RATES,
        _rates(study, found),
    ]


def _against_tau(study: Study, group: Group, protocols: Sequence[Protocol]) -> str:
    """Loss and gap of every τ where each protocol looks."""
    head = ["τ", "gradients a round", "staleness"]
    for protocol in protocols:
        head += (
            [f"{PROTOCOLS[protocol]}: loss", "gap"] if protocol != "loss" else [f"{PROTOCOLS[protocol]}: gap"]
        )
    rows = []
    for tau in group.taus:
        late = group.values(study, tau, "staleness_mean", "gradients")
        row = [str(tau), f"{group.per_round(tau):g}", _mean(late, ".1f")]
        for protocol in protocols:
            if protocol != "loss":
                row.append(_mean(group.values(study, tau, "loss", protocol), ".4g"))
            row.append(_interval(group.values(study, tau, GAP, protocol)))
        rows.append(row)
    return table(head, rows)


def _effects(study: Study, group: Group, protocols: Sequence[Protocol]) -> str:
    """What delay changes in the gap."""
    rows = []
    for protocol in protocols:
        gaps = {tau: group.values(study, tau, GAP, protocol) for tau in (0, 4, TAUS[-1])}
        row = [
            PROTOCOLS[protocol]
            if len(protocols) == 3 or protocol == "loss"
            else "equal iterations, gradients"
        ]
        row += [paired(gaps[TAUS[-1]], gaps[tau], "+.2g") for tau in (0, 4)]
        rows.append(row)
    return table(["", f"gap at τ = {TAUS[-1]} less that at 0", "less that at 4"], rows)


def _twins(study: Study, group: Group) -> str:
    """Differences between twins after T iterations and after G gradients."""
    columns = {"loss": "mean absolute Δf", "distance": "‖x − x'‖", "row": "Δ at the rows"}
    protocols: tuple[Protocol, ...] = ("iterations", "gradients")
    head = ["τ", *(f"{PROTOCOLS[p]}: {text}" for p in protocols for text in columns.values())]
    rows = []
    for tau in group.taus:
        cells = (group.values(study, tau, f"stability_{name}", p) for p in protocols for name in columns)
        rows.append([str(tau), *(_interval(values) for values in cells)])
    return table(head, rows)


def _rows(study: Study, found: dict[str, Group]) -> str:
    """The gap against n for some τ."""
    by_rows = {rows: found["schedule" if rows == 320 else f"rows{rows}"] for rows in ROWS}
    taus = by_rows[ROWS[0]].taus
    protocols: tuple[Protocol, ...] = ("iterations", "gradients")
    head = ["n", *(f"{PROTOCOLS[p]}: τ = {tau}" for p in protocols for tau in taus)]
    lines, powers = [], ["b"]
    for rows, group in by_rows.items():
        cells = (group.values(study, tau, GAP, p) for p in protocols for tau in taus)
        lines.append([f"{WORKERS * rows:,}", *(_interval(values) for values in cells)])
    for p in protocols:
        for tau in taus:
            pairs = [
                (rows, gap) for rows, group in by_rows.items() for gap in group.values(study, tau, GAP, p)
            ]
            powers.append(_power(pairs))
    return table(head, [*lines, powers])


def _power(pairs: Sequence[tuple[float, float]]) -> str:
    """b of y ∝ x^b with its 95 % interval."""
    if any(not y > 0 for _, y in pairs):  # also nan
        return "–"
    return power(*zip(*pairs, strict=True))


def _rates(study: Study, found: dict[str, Group]) -> str:
    """The gap against the rate for every τ."""
    lines = {"η/4": found["rate0.25"], "η": found["schedule"], "1/(20 L (τ + 1))": found["rule"]}
    head = ["rate", "", *(f"τ = {tau}" for tau in TAUS)]
    rows = []
    for label, group in lines.items():
        for protocol, text in PROTOCOLS.items():
            cells = [_interval(group.values(study, tau, GAP, protocol)) for tau in TAUS]
            rows.append([label if protocol == "iterations" else "", text, *cells])
    return table(head, rows)


def mean_series(study: Study, group: Group, tau: int, name: str) -> list[float]:
    """A metric at every record, the mean over the seeds that are finished; empty if none is."""
    every = [study.series(group.case(tau, seed), name) for seed in group.seeds]
    found = [series for series in every if series]
    return [statistics.fmean(values) for values in zip(*found, strict=False)]


def _mean(values: Sequence[float], form: str) -> str:
    return "–" if any(map(math.isnan, values)) else format(statistics.fmean(values), form)


def _interval(values: Sequence[float]) -> str:
    """The mean with its 95 % interval."""
    return paired(values, [0.0] * len(values), ".3g")
