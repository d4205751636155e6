"""Where the time and the bytes went.

A rank that waits for a slower one spends that time inside a port. The last one to come waits for nobody, so

    communication of a port     the smallest of the ranks' seconds in it
    waiting                     the mean of the ranks' seconds in it, less that
    imbalance                   the largest of the ranks' seconds of computing over the mean, less 1

A rank that is slowed down raises imbalance and waiting, and not the communication. These are sums over
rounds: where the ranks take turns at being slow, much of the waiting counts as communication.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcopt.report.runs import Run
from hpcopt.report.tables.table import Cell, Table, columns, number, numbers

COMPUTE = "compute"
NO_PORTS = (COMPUTE, "evaluation", "files", "curvature ranks")
"""the phases that are no port"""


@dataclass(frozen=True)
class Times:
    """What became of the ranks' time in one record, or in a block of rounds.

    Attributes:
        seconds: the optimisation clock of the slowest rank [s].
        imbalance: of computing.
        communication, waiting: in all ports [s].
    """

    seconds: float
    imbalance: float
    communication: float
    waiting: float

    @property
    def share(self) -> float:
        """Communication as a part of the clock; NaN where that is 0."""
        return self.communication / self.seconds if self.seconds else np.nan

    @classmethod
    def of(
        cls,
        phases: Sequence[str],
        largest: NDArray[np.float64],
        smallest: NDArray[np.float64],
        mean: NDArray[np.float64],
        seconds: float,
    ) -> Times:
        """From the ranks' seconds in each phase, (phases,) each."""
        port = np.array([phase not in NO_PORTS for phase in phases], dtype=bool)
        at = list(phases).index(COMPUTE) if COMPUTE in phases else None
        imbalance = np.nan if at is None or not mean[at] else float(largest[at] / mean[at]) - 1
        communication = float(smallest[port].sum())
        return cls(seconds, imbalance, communication, float(mean[port].sum()) - communication)


def times(run: Run) -> Times | None:
    """Of the last record; None where a run has no record, or is older than phases."""
    largest = run.last("phases/seconds")
    if largest is None:
        return None
    smallest, mean = run.last("phases/seconds_min"), run.last("phases/seconds_mean")
    return Times.of(
        run.labels("phases", "phase"), largest, smallest, mean, float(run.last("metrics/seconds"))
    )


def time(runs: Sequence[Run]) -> Table:
    """A row for each run."""
    rows: list[list[Cell]] = []
    for run in runs:
        if found := times(run):
            phases = dict(zip(run.labels("phases", "phase"), run.last("phases/seconds_mean"), strict=True))
            beside = [number(phases.get(name)) for name in NO_PORTS]
            known = (found.imbalance, found.communication, found.share, found.waiting)
            rows.append([run.name, found.seconds, beside[0], *known, *beside[1:]])
    return Table(
        "time",
        "Time",
        "A rank that waits for a slower one does so inside a port. Communication: of each port, the smallest "
        "of the ranks' seconds (the last one to come waits for nobody), and its share of the clock of the "
        "slowest rank. Waiting: the mean over the ranks, less that. Imbalance: computing of the slowest rank "
        "over the mean, less 1. All else: means over the ranks.",
        columns(
            *("run", "seconds [s]", "compute [s]", "imbalance [1]", "communication [s]"),
            *("communication share [1]", "waiting [s]", "evaluation [s]", "files [s]", "curvature ranks [s]"),
        ),
        rows,
    )


def phases(runs: Sequence[Run]) -> Table:
    """A row for each run and phase."""
    rows: list[list[Cell]] = []
    for run in runs:
        if run.last("phases/seconds") is None:
            continue
        every = [run.last(f"phases/seconds{which}") for which in ("", "_mean", "_min")]
        for at, phase in enumerate(run.labels("phases", "phase")):
            largest, mean, smallest = numbers(column[at] for column in every)
            rows.append([run.name, str(phase), largest, mean, smallest])
    return Table(
        "phases",
        "Time per phase",
        "Since the start of the run, over its ranks. Evaluation and files are not on the optimisation clock.",
        columns("run", "phase", "largest [s]", "mean [s]", "smallest [s]"),
        rows,
    )


def ports(runs: Sequence[Run]) -> Table:
    """A row for each run and port."""
    names = ("calls", "bytes", "payload", "seconds")
    rows: list[list[Cell]] = []
    for run in runs:
        known = [run.last(f"ports/{name}") for name in names]
        for at, port in enumerate(run.labels("ports", "port") if run.records else []):
            rows.append([run.name, str(port), *numbers(None if c is None else c[at] for c in known)])
    return Table(
        "ports",
        "Communication per port",
        "Since the start of the run: calls and seconds of the rank with the most, bytes of all ranks "
        "(payload: what had to be told, before any protocol).",
        columns("run", "port", "calls [1]", "bytes [B]", "payload [B]", "seconds [s]"),
        rows,
    )
