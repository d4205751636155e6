"""Linear speed-up: rounds to a fixed training loss against the number of workers, in three regimes of β."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jobs.studies.markdown import table
from jobs.studies.statistics import crossing, power
from jobs.studies.study import Case, Study

CONFIG = Path(__file__).resolve().parent / "speedup.toml"
WORKERS, SEEDS = (4, 8, 16, 32, 64), (1, 2, 3)
TARGET, CAP = 0.5, 400
BETAS = {0.01: WORKERS[:3], 0.02: WORKERS, 0.04: WORKERS, 0.12: WORKERS, 0.18: WORKERS}
"""β -> the N that it is run with: the smallest only where much noise might make it the best"""
BETA0, HORIZONS = 0.1, (40, 80, 160, 320)
"""of β = β₀ √(N/K); the K that are tried, in this order, until a run of K rounds ends below the target"""
FITS: dict[str, Callable[[int], bool]] = {
    "all N": lambda N: True,
    "N ≤ 16": lambda N: N <= 16,
    "N ≥ 16": lambda N: N >= 16,
}
TEXT = f"""Rounds until f, the mean over the workers of their own training loss, is at or below {TARGET:g}:
mean of the seeds; each draws the workers' data, the start and the mini-batches anew (of one seed, the first
workers have the same data for all N). Target and rates were chosen on seed 0, which is not used here, and
0.12 was put in place of 0.005 and 0.08 when the first runs of seed 1 showed little noise at these; 0.18,
where seed 0 had shown more noise still, was added when all the others were done.
Fixed β: the first crossing, looked for every 4 rounds and interpolated, of at most {CAP}.
β = β₀ √(N/K), β₀ = {BETA0:g}: as in the theory a run of K rounds has its own β, and only the loss it ends
with counts; K = {", ".join(map(str, HORIZONS))}, interpolated in log K between the first that ends below the
target and the one before; {HORIZONS[0]} if that one does already. «> K (n of {len(SEEDS)})»: so many seeds
had not reached it by then. «Best»: the β of the grid with the fewest rounds in the mean over the seeds,
chosen for each N on the same runs; bold in the table. "–": not run."""
FIT_TEXT = """Exponent b of rounds ∝ N^b by least squares of log rounds on log N over all runs, with its 95 %
interval (Student's t). The theory says −1 for β ∝ √(N/K). N at which a seed did not reach the target are left
out, and named."""


def fixed_case(N: int, beta: float, seed: int) -> Case:
    """A run at one β, until the target."""
    settings = {"run.rounds": CAP, "run.target_loss": TARGET} | _common(N, beta, seed)
    return Case(f"beta{beta:g}-n{N}-seed{seed}", CONFIG, settings)


def fixed_cases() -> list[Case]:
    """All of them, seed by seed."""
    return [fixed_case(N, beta, seed) for seed in SEEDS for beta, every in BETAS.items() for N in every]


def horizon_case(N: int, K: int, seed: int) -> Case:
    """A run of K rounds at β₀ √(N/K)."""
    settings = {"run.rounds": K, "run.evaluate_every": K} | _common(N, BETA0 * math.sqrt(N / K), seed)
    return Case(f"horizon{K}-n{N}-seed{seed}", CONFIG, settings)


def _common(N: int, beta: float, seed: int) -> dict[str, float]:
    return {"run.workers": N, "run.seed": seed, "method.lr_body": beta}


def run(study: Study) -> None:
    """Runs what is missing."""
    study.run(fixed_cases())
    for _ in HORIZONS:  # one more K for those that no run has brought below the target yet
        study.run([case for seed in SEEDS for N in WORKERS for case in _horizons(study, N, seed)])


def section(study: Study) -> str:
    """Rounds to the target, and the exponents."""
    cases = fixed_cases() + [case for seed in SEEDS for N in WORKERS for case in _horizons(study, N, seed)]
    found = _regimes(study)
    rows = [[label, *(_cell(found, label, N) for N in WORKERS)] for label in found]
    fits = [[label, *(exponent(per_n, which) for which in FITS.values())] for label, per_n in found.items()]
    return "\n\n".join(
        [
            f"## Speed-up: rounds to a training loss of {TARGET:g}, batches of one image",
            study.about(cases),
            TEXT,
            table(["β", *(f"N = {N}" for N in WORKERS)], rows),
            FIT_TEXT,
            table(["β", *(f"b, {name}" for name in FITS)], fits),
        ]
    )


# --- rounds to the target --------------------------------------------------------------------------------


def _regimes(study: Study) -> dict[str, dict[int, list[float]]]:
    """Label -> N -> rounds of every seed: infinite where the target was not reached, nan where runs miss."""
    found = {
        f"fixed {beta:g}": {
            N: [_crossing(study, fixed_case(N, beta, seed)) for seed in SEEDS] for N in WORKERS
        }
        for beta in BETAS
    }
    grids = {N: {label: per_n[N] for label, per_n in found.items()} for N in WORKERS}
    found["best for each N"] = {N: grids[N][_best(grids[N])] for N in WORKERS}
    found[f"{BETA0:g} √(N/K)"] = {N: [_horizon(study, N, seed) for seed in SEEDS] for N in WORKERS}
    return found


def _best(grid: dict[str, list[float]]) -> str:
    """The label with the fewest rounds in the mean."""
    return min(grid, key=lambda label: np.nan_to_num(np.mean(grid[label]), nan=np.inf))


def _crossing(study: Study, case: Case) -> float:
    """The first round at which the loss is at the target, linear between records."""
    return crossing(study.series(case, "loss"), study.series(case, "round"), TARGET)


def _ends(study: Study, N: int, seed: int) -> list[float]:
    """The losses that runs of K rounds end with, for K in order until the first below the target."""
    ends: list[float] = []
    for K in HORIZONS:
        losses = study.series(horizon_case(N, K, seed), "loss")
        if not losses:
            break
        ends.append(losses[-1] if math.isfinite(losses[-1]) else math.inf)
        if ends[-1] <= TARGET:
            break
    return ends


def _horizons(study: Study, N: int, seed: int) -> list[Case]:
    """The runs needed so far: with one more K where the target is not reached."""
    ends = _ends(study, N, seed)
    count = len(ends) if ends and ends[-1] <= TARGET else len(ends) + 1
    return [horizon_case(N, K, seed) for K in HORIZONS[:count]]


def _horizon(study: Study, N: int, seed: int) -> float:
    """The K whose run ends at the target."""
    ends = _ends(study, N, seed)
    if not ends or ends[-1] > TARGET:
        return math.inf if len(ends) == len(HORIZONS) else math.nan
    last = len(ends) - 1
    if last == 0 or math.isinf(ends[last - 1]):
        return float(HORIZONS[last])
    part = (ends[last - 1] - TARGET) / (ends[last - 1] - ends[last])
    return HORIZONS[last - 1] * (HORIZONS[last] / HORIZONS[last - 1]) ** part


# --- tables ----------------------------------------------------------------------------------------------


def _cell(found: dict[str, dict[int, list[float]]], label: str, N: int) -> str:
    values = found[label][N]
    text = _mean(values, HORIZONS[-1] if "K" in label else CAP)
    best = _best({other: per_n[N] for other, per_n in found.items() if other.startswith("fixed")})
    return f"**{text}**" if label == best and math.isfinite(sum(values)) else text


def _mean(values: list[float], most: int) -> str:
    if any(map(math.isnan, values)):
        return "–"
    late = sum(map(math.isinf, values))
    return (
        f"> {most} ({late} of {len(values)})"
        if late
        else f"{np.mean(values):.0f} ± {np.std(values, ddof=1):.0f}"
    )


def exponent(per_n: dict[int, list[float]], which: Callable[[int], bool]) -> str:
    """b with its interval, and the N that had to be left out."""
    wanted = {N: values for N, values in per_n.items() if which(N)}
    if any(math.isnan(value) for values in wanted.values() for value in values):
        return "–"
    kept = {N: values for N, values in wanted.items() if all(map(math.isfinite, values))}
    left = [str(N) for N in wanted if N not in kept]
    without = f" (without {', '.join(left)})" if left else ""
    if len(kept) < 2:
        return f"–{without}"
    pairs = [(N, value) for N, values in kept.items() for value in values]
    return f"{power(*zip(*pairs, strict=True))}{without}"
