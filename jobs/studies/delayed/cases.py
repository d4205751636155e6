"""Which runs there are, and which of their records the three protocols look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jobs.studies.statistics import crossing
from jobs.studies.study import Case, Study

HERE = Path(__file__).resolve().parent
WORKERS = 16
TAUS = (0, 4, 8, 16, 32)
FEW = (0, 4, 32)
"""those of the runs on more and fewer rows"""
ITERATIONS = 1920
"""T of "equal iterations", on the schedule"""
GRADIENTS = 8 * ITERATIONS
"""G of "equal gradients": 16 / τ arrive in an iteration, so that with τ = 4 it takes 2 T iterations"""
ROWS = (64, 320, 1280, 3750)
"""of each worker"""
SEEDS = (1, 2, 3, 4, 5)
FEWER_SEEDS = SEEDS[:3]
METRIC = "jobs.studies.delayed.problems:stability"
Protocol = Literal["iterations", "gradients", "loss"]


@dataclass(frozen=True)
class Problem:
    """One of the two.

    Attributes:
        name: of its config.
        label: in RESULTS.md.
        lr: of a gradient on the schedule.
        exact_lr: of the mean of all workers' gradients, where each is as late as the other.
    """

    name: str
    label: str
    lr: float
    exact_lr: float

    @property
    def config(self) -> Path:
        """Its data."""
        return HERE / f"{self.name}.toml"


PROBLEMS = (
    Problem("least_squares", "Least squares, one layer, d = 7850", 5e-4, 5e-4),
    Problem("network", "Network, one hidden layer, d = 101,770", 2e-3, 5e-3),
)


@dataclass(frozen=True)
class Group:
    """Runs that differ in τ and in the seed.

    Attributes:
        problem: of all of them.
        kind: in their names: "schedule", "exact", "rate0.25", "rule", "rows64", "twins".
        seeds, taus: of which.
        records: of each run, after the start.
        samples: rows of each worker.
        factor: of the learning rate; None: the paper's condition for stability gives it, 1/(20 L (τ + 1)).
        quick: how many times fewer rounds.
    """

    problem: Problem
    kind: str
    seeds: Sequence[int] = SEEDS
    taus: Sequence[int] = TAUS
    records: int = 32
    samples: int = 320
    factor: float | None = 1.0
    quick: int = 1

    @property
    def exact(self) -> bool:
        """Whether all workers' gradients arrive in every round, all equally late."""
        return self.kind == "exact"

    def per_round(self, tau: int) -> float:
        """Gradients that arrive in a round, in the mean."""
        return WORKERS if self.exact or tau == 0 else WORKERS / tau

    def rounds(self, tau: int) -> int:
        """Of a run that has both T iterations and G gradients; all equally late: only the latter."""
        gradients = math.ceil(GRADIENTS / self.per_round(tau))
        return gradients if self.exact else max(ITERATIONS, gradients)

    def case(self, tau: int, seed: int) -> Case:
        """A run."""
        every = max(1, self.rounds(tau) // (self.records * self.quick))
        settings: dict[str, Any] = {
            "run.rounds": every * self.records,
            "run.evaluate_every": every,
            "run.seed": seed,
            "problem.seed": seed,
            "problem.samples_per_worker": self.samples,
            "method.delay": tau,
        }
        together = 1 if self.exact else WORKERS
        if self.exact or tau == 0:  # the sum of all 16, which is as many times their mean
            settings |= {"method.mode": "exact", "method.aggregate": "mean"}
        else:
            together = 1
        if self.factor is None:
            settings |= {"method.lr_rule": "stability", "method.lr_factor": together / 20}
        else:
            lr = self.problem.exact_lr if self.exact else self.problem.lr
            settings["method.lr"] = together * self.factor * lr
        if self.kind == "twins":
            settings |= {"problem.twin_row": seed, "run.metrics": [METRIC]}
        name = f"{self.problem.name}/{self.kind}/tau{tau}-seed{seed}"
        return Case(name, self.problem.config, settings)

    def cases(self) -> list[Case]:
        """All of them, seed by seed."""
        return [self.case(tau, seed) for seed in self.seeds for tau in self.taus]

    # --- where the protocols look -------------------------------------------------------------------------

    def record(self, tau: int, protocol: Protocol) -> int:
        """The record after T iterations, or after G gradients."""
        rounds = GRADIENTS / self.per_round(tau)
        if protocol == "iterations" and not self.exact:
            rounds = ITERATIONS
        return round(self.records * rounds / self.rounds(tau))

    def values(self, study: Study, tau: int, name: str, protocol: Protocol) -> list[float]:
        """A metric of every seed where a protocol looks; nan where a run is missing or has diverged."""
        cases = [self.case(tau, seed) for seed in self.seeds]
        if protocol != "loss":
            return study.column(cases, name, self.record(tau, protocol))
        found = [
            crossing(study.series(case, "loss"), study.series(case, name), target)
            for case, target in zip(cases, self.targets(study), strict=True)
        ]
        return [value if math.isfinite(value) else math.nan for value in found]

    def targets(self, study: Study) -> list[float]:
        """Of every seed, the training loss that all τ reach: the largest of those after G gradients."""
        ends = [self.values(study, tau, "loss", "gradients") for tau in self.taus]
        return [
            math.nan if any(map(math.isnan, losses)) else max(losses) for losses in zip(*ends, strict=True)
        ]


def groups(problem: Problem, quick: int) -> dict[str, Group]:
    """All of a problem's, by kind."""
    make: Callable[..., Group] = lambda kind, **keys: Group(problem, kind, quick=quick, **keys)  # noqa: E731
    few = {"seeds": FEWER_SEEDS, "records": 16}
    found = [
        make("schedule"),
        make("exact"),
        make("rate0.25", factor=0.25, **few),
        make("rule", factor=None, **few),
        *(make(f"rows{rows}", samples=rows, taus=FEW, **few) for rows in ROWS if rows != 320),
        make("twins", records=16),
    ]
    return {group.kind: group for group in found}
