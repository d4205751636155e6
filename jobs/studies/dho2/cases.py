"""The study's problems and methods, and each method's learning rate on each problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import Case, Study

from hpcopt.config import load

HERE = Path(__file__).resolve().parent
SEEDS = (1, 2, 3)
TUNING_SEED = 100
EXTENSIONS = 4
"""how often a grid grows by one rate where its best is its first or last"""
ADAM_RATES = (1e-4, 3.2e-4, 1e-3, 3.2e-3, 1e-2)
TARGETS = (0.4, 0.9)
"""the loss that the best first-order method has after this part of its rounds"""
LBFGS_ROUNDS = 100


@dataclass(frozen=True)
class Problem:
    """One of the five.

    Attributes:
        name: of its config.
        label: in RESULTS.md.
        rates: the grid of all methods but Adam's.
        alpha: of the hybrids.
        lbfgs: whether L-BFGS is tried.
        starts: whether its start has a seed of its own.
    """

    name: str
    label: str
    rates: tuple[float, ...]
    alpha: float = 0.1
    lbfgs: bool = False
    starts: bool = False

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
    ),
    Problem("logistic", "Logistic regression, d = 7850", (1e-3, 3.2e-3, 1e-2, 3.2e-2, 0.1), 0.01, lbfgs=True),
    Problem("autoencoder", "Autoencoder, d = 435,536", (1e-3, 3.2e-3, 1e-2, 3.2e-2, 0.1), starts=True),
    Problem("mlp", "`mlp`, d = 235,146", (1e-3, 3.2e-3, 1e-2, 3.2e-2, 0.1)),
    Problem("cnn", "`cnn`, d = 206,922", (1e-3, 3.2e-3, 1e-2, 3.2e-2, 0.1)),
]


@dataclass(frozen=True)
class Variant:
    """A method.

    Attributes:
        name: in the names of directories.
        label: in tables.
        settings: "table.key" -> value.
        base: of a hybrid, the name of the variant that its warm-up is; else None.
        tuned: whether it has a learning rate.
    """

    name: str
    label: str
    settings: dict[str, Any] = field(hash=False)
    base: str | None = None
    tuned: bool = True

    @property
    def rates(self) -> tuple[float, ...] | None:
        """Its own grid; None: the problem's."""
        return ADAM_RATES if "adam" in self.name else None


def _first_order(name: str, label: str, /, **keys: Any) -> Variant:
    return Variant(name, label, {"run.method": "allreduce_sgd", **_keys(keys)})


def _hybrid(name: str, label: str, before: str, /, **keys: Any) -> Variant:
    keys |= {"largest": 10, "smallest": 0, "lanczos_iterations": 40, "curvature_batch": 128}
    return Variant(name, label, {"run.method": "dho2", **_keys(keys)}, before)


def _keys(keys: dict[str, Any]) -> dict[str, Any]:
    return {f"method.{key}": value for key, value in keys.items()}


FIRST_ORDER = [
    _first_order("sgd", "heavy ball, 0.9", momentum=0.9),
    _first_order("sgd99", "heavy ball, 0.99", momentum=0.99),
    _first_order("adam", "Adam", optimizer="adam"),
]
HYBRIDS = [
    _hybrid("fosi", "FOSI, heavy ball 0.9", "sgd", variant="fosi", base="momentum"),
    _hybrid("fosi-adam", "FOSI, Adam", "adam", variant="fosi", base="adam"),
    _hybrid("admm", "ADMM, heavy ball 0.9", "sgd", variant="admm", base="momentum"),
]
LBFGS = Variant("lbfgs", "L-BFGS, all rows", {"run.method": "lbfgs"}, tuned=False)


@dataclass(frozen=True)
class Plan:
    """Which runs there are, as far as the finished ones tell.

    Attributes:
        study: with their results.
        ranks: of the runs whose seconds count.
        quick: how many times fewer rounds, for a try.
    """

    study: Study
    ranks: int
    quick: int = 1

    def variants(self, problem: Problem) -> list[Variant]:
        """Those of a problem."""
        return [*FIRST_ORDER, *HYBRIDS, *([LBFGS] if problem.lbfgs else [])]

    def rounds(self, problem: Problem, variant: Variant | None = None) -> int:
        """How many a method makes; L-BFGS, whose rounds cost a pass over all rows, has fewer."""
        if variant is LBFGS:
            return LBFGS_ROUNDS // self.quick
        return load(problem.config).run.rounds // self.quick

    def settings(self, problem: Problem, variant: Variant, lr: float | None) -> dict[str, Any] | None:
        """Of a run; None while the rate of a hybrid's warm-up, which is its base's, is not known."""
        rounds = self.rounds(problem, variant)
        found = variant.settings | {"run.rounds": rounds, "run.evaluate_every": max(1, rounds // 50)}
        if lr is not None:
            found["method.lr"] = lr
        if variant.base is not None:
            base = next(v for v in FIRST_ORDER if v.name == variant.base)
            warmup_lr = self.rate(problem, base)
            if warmup_lr is None:
                return None
            found |= {
                "method.alpha": problem.alpha,
                "method.warmup": rounds // 20,
                "method.warmup_lr": warmup_lr,
                "method.refresh_every": rounds * 2 // 5,
            }
        return found

    def case(self, problem: Problem, variant: Variant, lr: float | None, seed: int) -> Case | None:
        """A run; None while its settings are not known."""
        settings = self.settings(problem, variant, lr)
        if settings is None:
            return None
        rate = "" if lr is None else f"-lr{lr:g}"
        folder = "tune" if seed == TUNING_SEED else "final"
        name = f"{problem.name}/{folder}/{variant.name}{rate}-seed{seed}"
        seeds = {"run.seed": seed} | ({"problem.seed": seed} if problem.starts else {})
        return Case(name, problem.config, settings | seeds, self.ranks)

    # --- learning rates ----------------------------------------------------------------------------------

    def trials(self, problem: Problem, variant: Variant) -> dict[float, float]:
        """Rates to try, as far as finished runs tell -> training loss at the end, nan while it is missing."""
        rates, factor = variant.rates or problem.rates, math.sqrt(10)
        for _ in range(EXTENSIONS):
            losses = [self._loss(problem, variant, lr) for lr in rates]
            best = math.nan if any(map(math.isnan, losses)) else rates[losses.index(min(losses))]
            if best == rates[0]:
                rates = (float(f"{rates[0] / factor:.2g}"), *rates)
            elif best == rates[-1]:
                rates = (*rates, float(f"{rates[-1] * factor:.2g}"))
        return {lr: self._loss(problem, variant, lr) for lr in rates}

    def rate(self, problem: Problem, variant: Variant) -> float | None:
        """The one with the lowest training loss; None while runs are missing."""
        trials = self.trials(problem, variant)
        return None if any(map(math.isnan, trials.values())) else min(trials, key=lambda lr: trials[lr])

    def _loss(self, problem: Problem, variant: Variant, lr: float) -> float:
        case = self.case(problem, variant, lr, TUNING_SEED)
        losses = self.study.series(case, "loss") if case else []
        if not losses:
            return math.nan
        return losses[-1] if math.isfinite(losses[-1]) else math.inf

    def tune(self, problem: Problem) -> None:
        """Runs the grids, the hybrids' after those of their bases."""
        for variants in (FIRST_ORDER, HYBRIDS):
            for _ in range(1 + EXTENSIONS):
                every = [
                    self.case(problem, v, lr, TUNING_SEED) for v in variants for lr in self.trials(problem, v)
                ]
                self.study.run([case for case in every if case is not None])

    # --- what is compared --------------------------------------------------------------------------------

    def finals(self, problem: Problem, variant: Variant) -> list[Case]:
        """A method's runs, one for each seed; none while its rate is not known."""
        lr = self.rate(problem, variant) if variant.tuned else None
        if variant.tuned and lr is None:
            return []
        every = [self.case(problem, variant, lr, seed) for seed in SEEDS[: 1 if self.quick > 1 else None]]
        return [case for case in every if case is not None]

    def targets(self, problem: Problem) -> list[float]:
        """Losses of the best first-order method after parts of its rounds, on the tuning's seed."""
        trials = {v: self.trials(problem, v) for v in FIRST_ORDER}
        losses = [(loss, v, lr) for v, every in trials.items() for lr, loss in every.items()]
        if any(math.isnan(loss) for loss, _, _ in losses):
            return []
        _, variant, lr = min(losses, key=lambda found: found[0])
        case = self.case(problem, variant, lr, TUNING_SEED)
        series: Sequence[float] = self.study.series(case, "loss") if case else []
        return [series[round(part * (len(series) - 1))] for part in TARGETS]
