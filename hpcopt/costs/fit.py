"""What runs themselves say about the network that they ran on, and about the time that computing takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcopt.costs.machine import Machine, traffic_seconds
from hpcopt.costs.runs import MAIL, Measured
from hpcopt.costs.travel import Layout, Travel, Work
from hpcopt.errors import UserError

PLACES = ("within", "between")


@dataclass(frozen=True)
class Price:
    """Of one use of a port.

    Attributes:
        seconds: of messages within a host, of hops, overheads and of work in memory.
        nbytes: that leave a host, whose time is for the round to find out.
        extrapolated: in what way it is beyond what was measured.
    """

    seconds: float
    nbytes: float
    extrapolated: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """How long a use of a port takes: by a machine file, or by the runs' own fit.

    Attributes:
        name: in words.
        fitted: column -> its value: (place, "hop") and (place, "byte"), and ("work", kind) in seconds per
            byte that is copied or added up.
        machine: None: by the fit alone.
    """

    name: str
    fitted: dict[tuple[str, str], float]
    machine: Machine | None = None

    @property
    def per_byte(self) -> float:
        """Seconds of a byte that leaves a host."""
        if self.machine:
            return 1 / self.machine.link("between").bandwidth
        return self.fitted.get(("between", "byte"), 0.0)

    @property
    def burst(self) -> float:
        """Bytes that pass a link at once after a pause."""
        return self.machine.link("between").burst if self.machine else 0.0

    @property
    def spread(self) -> float:
        """Of the machine's points."""
        return self.machine.spread if self.machine else 0.0

    def price(self, work: Work, on: Layout, of: Travel) -> Price:
        """Of one use."""
        local = self.fitted.get(("work", work.kind), 0.0) * of.worked
        if work.kind == MAIL:  # travels by itself
            return Price(local, of.between.nbytes)
        if self.machine is not None:
            hops, beyond, nbytes, extrapolated = traffic_seconds(self.machine, work, on, of)
            place = "between" if of.between.pieces else "within"
            measured = self.machine.overhead(place, work.verb, 2, 1.0) is not None
            return Price(hops + beyond + (0.0 if measured else local), nbytes, tuple(extrapolated))
        seconds = local + self.fitted.get(("within", "byte"), 0.0) * of.within.nbytes
        for place in PLACES:
            seconds += self.fitted.get((place, "hop"), 0.0) * getattr(of, place).hops
        return Price(seconds, of.between.nbytes)


def fit(
    uses: Sequence[tuple[float, Work, Travel, float]], several: bool = True
) -> dict[tuple[str, str], float]:
    """Latency, seconds per byte and work per byte that explain measured uses best.

    Non-negative least squares of relative errors (Lawson & Hanson, Solving Least Squares Problems, 1974).

    Args:
        uses: seconds of one use, what it did, what travelled, and what the relative errors weigh.
        several: they were measured on several numbers of ranks; else nothing tells work from travelling, and
            what travels is taken to be all of it.
    """
    columns: dict[tuple[str, str], list[float]] = {}
    for at, (_, work, of, _) in enumerate(uses):
        found: dict[tuple[str, str], float] = {}
        if several or work.kind == MAIL:
            found["work", work.kind] = of.worked
        if work.kind != MAIL:
            found |= {(place, "hop"): getattr(of, place).hops for place in PLACES}
            found |= {(place, "byte"): getattr(of, place).nbytes for place in PLACES}
        for name, value in found.items():
            if value:
                columns.setdefault(name, [0.0] * len(uses))[at] = value
    if not columns:
        return {}
    matrix, seconds = np.array(list(columns.values())).T, np.array([use[0] for use in uses])
    weight = np.array([use[3] for use in uses]) / np.maximum(seconds, 1e-9)
    values = _nonnegative(matrix * weight[:, None], seconds * weight)
    return dict(zip(columns, values, strict=True))


@dataclass(frozen=True)
class Compute:
    """Seconds of computing in a round: per round and per worker of the rank with most to do.

    Attributes:
        fixed, each: c = fixed + each · n, workers being those of average work.
        least, most: n, between which it was measured.
    """

    fixed: float
    each: float
    least: float
    most: float

    def of(self, workers: float) -> float:
        """Of a rank with so many."""
        return self.fixed + self.each * workers


def compute(runs: Sequence[Measured], value: str = "compute") -> Compute:
    """Of runs of one method; in proportion to n where all had as many; those of crowded cores only alone."""
    quiet = [run for run in runs if not run.crowded] or list(runs)
    of = "heaviest" if value == "compute" else "fullest"
    points = [(getattr(run.on, of), float(np.median(getattr(run, value)))) for run in quiet]
    n, seconds = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    if len(set(n)) == 1:
        return Compute(0.0, float(np.median(seconds) / n[0]), float(n[0]), float(n[0]))
    matrix = np.stack([np.ones_like(n), n]).T / np.maximum(seconds, 1e-12)[:, None]
    fixed, each = _nonnegative(matrix, np.ones_like(n))
    return Compute(fixed, each, float(n.min()), float(n.max()))


def _nonnegative(matrix: Any, right: Any) -> list[float]:
    try:
        from scipy.optimize import nnls
    except ImportError as error:
        raise UserError('predictions need scipy: pip install "hpcopt[report]"') from error
    scale = np.abs(matrix).max(0)
    scale[scale == 0] = 1.0
    values, _ = nnls(matrix / scale, right)
    return [float(value) for value in values / scale]
