"""What a run costs: this rank's clock, and the totals over all ranks and all jobs of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from hpcopt.comm.ports import Counter, Ports

if TYPE_CHECKING:
    from hpcopt.engine.ranks import Floats, Ranks
    from hpcopt.problems.base import Problem

SUMMED = ("bytes", "bytes_workers", "payload")
LARGEST = ("calls", "seconds", "passes")
SPREAD = ("seconds", "seconds_min", "seconds_mean")
"""of a phase: the largest over the ranks, the smallest and the mean"""
COMPUTE, EVALUATION, FILES = "compute", "evaluation", "files"
CURVATURE = "curvature ranks"
"""computing on ranks without workers, which is on no clock of the others"""

PHASES = "phases"

Table = dict[str, dict[str, float]]


class OpenPorts(Ports, Protocol):
    """The ports of a run, as who opened them sees them.

    Attributes:
        chosen: what was measured or chosen so far, by name.
        remembered: the same wherever the run has been, for its next job.
    """

    @property
    def chosen(self) -> dict[str, Any]: ...

    @property
    def remembered(self) -> dict[str, dict[str, Any]]: ...

    def counters(self) -> dict[str, Counter]:
        """What every verb cost on this rank, by name."""

    def free(self) -> None:
        """Frees all ports. Collective."""


class Clock:
    """Where this rank's time goes. The optimisation clock stands still for evaluation and files.

    Attributes:
        seconds: the optimisation clock when it last stood still [s].
        beside: what was spent on evaluation and on files [s].
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self.beside = {EVALUATION: 0.0, FILES: 0.0}
        self._device = device
        self._started: float | None = None

    @property
    def runs(self) -> bool:
        """Whether it does not stand still."""
        return self._started is not None

    def start(self) -> None:
        """Goes on, if it stands still."""
        if self._started is None:
            self._started = time.perf_counter()

    def pause(self) -> None:
        """Stands still, once the device has finished what it was given."""
        if self._started is not None:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.seconds += time.perf_counter() - self._started
            self._started = None

    def now(self) -> float:
        """Seconds so far, while running too."""
        running = time.perf_counter() - self._started if self._started is not None else 0.0
        return self.seconds + running

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """What is done within is evaluation or files; the optimisation clock has to stand still."""
        assert self._started is None, "the optimisation clock runs"
        since = time.perf_counter()
        try:
            yield
        finally:
            self.beside[phase] += time.perf_counter() - since


@dataclass
class Totals:
    """What a run cost so far, over all ranks and all jobs of its chain.

    Attributes:
        seconds: the optimisation clock of the slowest rank [s].
        gradients: sample gradients of all workers.
        ports: verb of a port -> calls, bytes, bytes_workers, payload, seconds, passes; those that only
            earlier jobs had are last.
        phases: phase -> `SPREAD` [s].
    """

    seconds: float
    gradients: float
    ports: Table
    phases: Table = field(default_factory=dict)

    def after(self, before: Totals | None) -> Totals:
        """With what earlier jobs cost, matched by name.

        What a run of older code did not count (a key of a port, all phases) is NaN from then on: nobody
        knows it.
        """
        if before is None:
            return self
        return Totals(
            self.seconds + before.seconds,
            self.gradients + before.gradients,
            _added(self.ports, before.ports, (*SUMMED, *LARGEST)),
            _added(self.phases, before.phases or {name: {} for name in self.phases}, SPREAD),
        )


class Costs:
    """Counts what a job costs.

    Args:
        ranks: all of the run.
        problem, ports, clock: where it arises.
        before: the totals of earlier jobs of the same run.
    """

    def __init__(
        self, ranks: Ranks, problem: Problem, ports: OpenPorts, clock: Clock, before: Totals | None = None
    ) -> None:
        self.clock = clock
        self._ranks, self._problem, self._ports, self._before = ranks, problem, ports, before
        # what the method's start has sent took none of the optimisation's time
        self._started = self._seconds_in_ports()

    def totals(self) -> Totals:
        """Sums over ranks for bytes and gradients, the largest for times, calls and passes. Collective."""
        counters = self._ports.counters()
        spent = self._phases(counters)
        sums = _together(
            self._ranks.sums,
            {"gradients": {"": float(self._problem.samples)}, PHASES: spent}
            | {port: {key: getattr(counter, key) for key in SUMMED} for port, counter in counters.items()},
        )
        largest = _together(
            self._ranks.largest,
            {"seconds": {"": self.clock.seconds}, PHASES: spent}
            | {"smallest": {phase: -seconds for phase, seconds in spent.items()}}
            | {port: {key: getattr(counter, key) for key in LARGEST} for port, counter in counters.items()},
        )
        ports = {
            port: {key: float(round(value)) for key, value in sums[port].items()} | largest[port]
            for port in counters
        }
        phases = {
            phase: {
                "seconds": largest[PHASES][phase],
                "seconds_min": -largest["smallest"][phase],
                "seconds_mean": sums[PHASES][phase] / self._ranks.count,
            }
            for phase in spent
        }
        now = Totals(largest["seconds"][""], sums["gradients"][""], ports, phases)
        return now.after(self._before)

    def _phases(self, counters: Mapping[str, Counter]) -> dict[str, float]:
        """What this rank's time was spent on [s]."""
        compute = self.clock.seconds - (self._seconds_in_ports() - self._started)
        elsewhere = {CURVATURE: counters["beside"].elsewhere} if "beside" in counters else {}
        ports = {name: counter.seconds for name, counter in counters.items()}
        return {COMPUTE: compute} | ports | elsewhere | self.clock.beside

    def _seconds_in_ports(self) -> float:
        return float(sum(counter.seconds for counter in self._ports.counters().values()))


@contextmanager
def uncounted(problem: Problem, ports: OpenPorts) -> Iterator[None]:
    """What the ports and the problem do within costs no metric anything, and leaves no trace."""
    samples, buffers = problem.samples, problem.buffers.clone()
    before = {name: replace(counter) for name, counter in ports.counters().items()}
    yield
    problem.samples = samples
    problem.buffers.copy_(buffers)
    for name, counter in ports.counters().items():
        vars(counter).update(vars(before.get(name, Counter())))


def _together(reduce: Callable[[Floats], Floats], tables: Mapping[str, Mapping[str, float]]) -> Table:
    """All values reduced in one message."""
    values = [value for row in tables.values() for value in row.values()]
    reduced = iter(reduce(np.array(values, dtype=np.float64)).tolist())
    return {name: {key: next(reduced) for key in row} for name, row in tables.items()}


def _added(now: Table, before: Table, keys: tuple[str, ...]) -> Table:
    nothing = dict.fromkeys(keys, 0.0)
    names = [*now, *(name for name in before if name not in now)]
    return {
        name: {
            key: now.get(name, nothing)[key] + before.get(name, nothing).get(key, math.nan) for key in keys
        }
        for name in names
    }
