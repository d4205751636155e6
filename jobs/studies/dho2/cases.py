"""The study's problems, each method's learning rate on each of them, and which runs there are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hpcopt.config import RunConfig, load
from jobs.studies.dho2.lines import AUTOMATIC, BASES, FIRST_ORDER, LBFGS, TUNED, Line
from jobs.studies.study import Case, Study
from jobs.studies.tuning import Tuning, tune

HERE = Path(__file__).resolve().parent
SEEDS = (1, 2, 3, 4, 5)
"""of the lines that are compared pair by pair; all others have the first few"""
TUNING_SEED = 100
EXTENSIONS = 2
"""how often a grid grows by one rate where its best is its first or last"""
ADAM_RATES = (1e-4, 3.2e-4, 1e-3, 3.2e-3, 1e-2)
TARGETS = (0.4, 0.9)
"""parts of a first-order method's rounds: what its loss is then, others are to reach"""
LBFGS_ROUNDS = 100
OUTER_STEPS = 20


@dataclass(frozen=True)
class Problem:
    """One of the five.

    Attributes:
        name: of its config.
        label: in RESULTS.md.
        rates: the grid of all methods but Adam's.
        alpha: of the hybrids that have a fixed one.
        lbfgs: whether L-BFGS is tried.
        starts: whether its start has a seed of its own.
        seeds: of the lines that are not compared pair by pair.
    """

    name: str
    label: str
    rates: tuple[float, ...] = (1e-3, 3.2e-3, 1e-2, 3.2e-2, 0.1)
    alpha: float = 0.1
    lbfgs: bool = False
    starts: bool = True
    seeds: int = 3

    @property
    def config(self) -> Path:
        """Its data."""
        return HERE / f"{self.name}.toml"


PROBLEMS = [
    Problem(
        "least_squares",
        "Least squares, 10 outlying eigenvalues, d = 1000",
        (1e-4, 3.2e-4, 1e-3, 3.2e-3, 1e-2),
        lbfgs=True,
        starts=False,
    ),
    Problem("logistic", "Logistic regression, d = 7850", alpha=0.01, lbfgs=True, starts=False),
    Problem("autoencoder", "Autoencoder, d = 435,536", seeds=2),
    Problem("mlp", "`mlp`, d = 235,146"),
    Problem("cnn", "`cnn`, d = 206,922", seeds=2),
]


@cache
def config(problem: Problem) -> RunConfig:
    """What its file says."""
    return load(problem.config)


@dataclass(frozen=True)
class Plan:
    """Which runs there are, as far as the finished ones tell.

    Attributes:
        study: with their results.
        ranks: of each run.
        quick: how many times fewer rounds, for a try.
    """

    study: Study
    ranks: int
    quick: int = 1

    def lines(self, problem: Problem) -> list[Line]:
        """Those of a problem."""
        return [*FIRST_ORDER, *TUNED, *AUTOMATIC, *([LBFGS] if problem.lbfgs else [])]

    def settings(self, problem: Problem, line: Line, lr: float | None) -> dict[str, Any] | None:
        """Of a run; None while the rate of a hybrid's base is not known."""
        run = config(problem).run
        # a round of L-BFGS costs a pass over all rows
        rounds, every = (LBFGS_ROUNDS, 2) if line is LBFGS else (run.rounds, run.evaluate_every)
        rounds //= self.quick
        found = line.settings | {"run.rounds": rounds, "run.evaluate_every": max(1, every // self.quick)}
        if lr is not None:
            found["method.lr"] = lr
        if line.base is not None:
            found["method.curvature_batch"] = config(problem).problem.dump()["batch_size"] // 4
        if line.base is not None and line.tuned:
            warmup_lr = self.rate(problem, next(base for base in FIRST_ORDER if base.name == line.base))
            if warmup_lr is None:
                return None
            found |= {
                "method.alpha": problem.alpha,
                "method.warmup": rounds // 20,
                "method.warmup_lr": warmup_lr,
                "method.refresh_every": rounds * 2 // 5,
            }
        if line.name in ("admm", "outer"):
            found["method.outer_every"] = max(1, rounds // OUTER_STEPS)
        return found

    def case(self, problem: Problem, line: Line, lr: float | None, seed: int) -> Case | None:
        """A run; None while its settings are not known."""
        settings = self.settings(problem, line, lr)
        if settings is None:
            return None
        rate = "" if lr is None else f"-lr{lr:g}"
        folder = "tune" if seed == TUNING_SEED else "final"
        name = f"{problem.name}/{folder}/{line.name}{rate}-seed{seed}"
        seeds = {"run.seed": seed} | ({"problem.seed": seed} if problem.starts else {})
        return Case(name, problem.config, settings | seeds, self.ranks)

    # --- learning rates ----------------------------------------------------------------------------------

    def tuning(self, problem: Problem, line: Line) -> Tuning:
        """A method's trials on a problem."""

        def case(lr: float) -> Case | None:
            return self.case(problem, line, lr, TUNING_SEED)

        grid = ADAM_RATES if "adam" in line.name else problem.rates
        return Tuning(self.study, case, grid, math.sqrt(10), EXTENSIONS, digits=2)

    def rate(self, problem: Problem, line: Line) -> float | None:
        """A method's learning rate; None while runs are missing, and where it has none."""
        if line is LBFGS:
            return None
        return self.tuning(problem, BASES.get(line, line)).rate()

    def tune(self, problem: Problem) -> None:
        """Runs the grids, the hybrids' after those of their bases."""
        for lines in (FIRST_ORDER, TUNED):
            tune(self.study, [self.tuning(problem, line) for line in lines])

    # --- what is compared --------------------------------------------------------------------------------

    def finals(self, problem: Problem, line: Line, every: bool = False) -> list[Case]:
        """A method's runs, one for each seed; none while its rate is not known.

        Args:
            problem, line: of which.
            every: all seeds, of a line that is compared pair by pair.
        """
        lr = self.rate(problem, line)
        if line is not LBFGS and lr is None:
            return []
        count = len(SEEDS) if every else problem.seeds
        if self.quick > 1:
            count = 2 if every else 1
        found = [self.case(problem, line, lr, seed) for seed in SEEDS[:count]]
        return [case for case in found if case is not None]

    def all_finals(self, problem: Problem) -> list[Case]:
        """All of these runs on a problem."""
        paired = {*BASES, *BASES.values()}
        return [case for line in self.lines(problem) for case in self.finals(problem, line, line in paired)]

    def targets(self, problem: Problem) -> list[float]:
        """Losses of the best first-order method after parts of its rounds, on the tuning's seed."""
        trials = {line: self.tuning(problem, line).trials() for line in FIRST_ORDER}
        losses = [(loss, line, lr) for line, found in trials.items() for lr, loss in found.items()]
        if any(math.isnan(loss) for loss, _, _ in losses):
            return []
        _, line, lr = min(losses, key=lambda found: found[0])
        case = self.case(problem, line, lr, TUNING_SEED)
        series = self.study.series(case, "loss") if case else []
        return [series[round(part * (len(series) - 1))] for part in TARGETS]
