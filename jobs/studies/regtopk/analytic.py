"""The toy and the heterogeneous linear regression: problems whose right answer is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jobs.studies.markdown import table
from jobs.studies.statistics import paired, spread
from jobs.studies.study import Case, Study

HERE = Path(__file__).resolve().parent
MU = {"toy": 1.0, "linear": 4.0}
DENSITIES = (0.4, 0.5, 0.52, 0.55, 0.6, 0.9)
SEEDS = range(1, 6)
SPARSIFIERS: dict[str, dict[str, Any]] = {
    "Top-k": {"run.method": "topk"},
    "RegTop-k": {"run.method": "regtopk", "method.mu": MU["linear"]},
    "RegTop-k, accumulated": {
        "run.method": "regtopk",
        "method.mu": MU["linear"],
        "method.denominator": "accumulated",
    },
}
CURVE = (0.5, 0.55)
"""densities whose distance is shown against rounds"""
LINEAR_TEXT = """log10 ‖x − x*‖². «Arrived»: seeds with a record below −12; «away again»: of all records
after a run's first one below −12, those above it; «highest then»: the largest of them.
There is a record every 50 rounds."""
REACHED = 1e-12
"""a squared distance below which a run counts as having arrived"""


# --- the toy ---------------------------------------------------------------------------------------------


def toy_cases() -> dict[str, Case]:
    """Method -> its run; nothing in it is random."""
    methods: dict[str, dict[str, Any]] = {
        "dense": {"run.method": "allreduce_sgd"},
        "Top-k": {"run.method": "topk", "method.k": 1},
        "RegTop-k": {"run.method": "regtopk", "method.k": 1, "method.mu": MU["toy"]},
    }
    return {
        label: Case(f"toy/{settings['run.method']}", HERE / "toy.toml", settings)
        for label, settings in methods.items()
    }


def toy_section(study: Study) -> str:
    """Loss at some rounds; there is a record every 10."""
    cases, rounds = toy_cases(), (0, 10, 100, 110, 160)
    rows = [
        [label, *(spread(study.column([case], "loss", round // 10), ".4g") for round in rounds)]
        for label, case in cases.items()
    ]
    return "\n\n".join(
        [
            "## Toy: 2 workers, k = 1, η = 0.9, μ = 1, 160 rounds",
            study.about(list(cases.values())),
            table(["method", *(f"loss at round {round}" for round in rounds)], rows),
        ]
    )


# --- linear regression -----------------------------------------------------------------------------------


def linear_case(label: str, density: float | None, seed: int) -> Case:
    """One run; dense if there is no density."""
    settings = SPARSIFIERS[label] | {"method.density": density} if density else {}
    name = f"{label.lower().replace(', ', '-')}-{density}" if density else "dense"
    return Case(f"linear/{name}-seed{seed}", HERE / "linear.toml", {**settings, "run.seed": seed})


def linear_cases() -> list[Case]:
    """All of them."""
    sparse = [linear_case(m, density, s) for density in DENSITIES for m in SPARSIFIERS for s in SEEDS]
    return [linear_case("dense", None, s) for s in SEEDS] + sparse


def distances(study: Study, label: str, density: float | None) -> list[list[float]]:
    """‖x − x*‖² at every record, a list per seed; empty where a run is missing."""
    return [study.series(linear_case(label, density, seed), "distance") for seed in SEEDS]


def linear_section(study: Study) -> str:
    """How near the methods come to the optimum."""
    methods = [("dense", None), *((label, density) for density in DENSITIES for label in SPARSIFIERS)]
    every = {(label, density): distances(study, label, density) for label, density in methods}
    rows = [
        [
            f"{density or 1:g}",
            label,
            *(cell(every[label, density]) for cell in (_end, _smallest, _arrived, _away, _highest)),
        ]
        for label, density in methods
    ]
    differences = [
        [f"{density:g}", *(_difference(every, label, density) for label in list(SPARSIFIERS)[1:])]
        for density in DENSITIES
    ]
    shown = [
        ("dense", None),
        *((label, density) for density in CURVE for label in ("Top-k", "RegTop-k")),
    ]
    curves = [
        [str(50 * record), *(_log(every[label, density], record) for label, density in shown)]
        for record in (0, 5, 10, 15, 20, 25, 30, 40, 50)
    ]
    return "\n\n".join(
        [
            "## Linear regression: 20 workers, d = 100, η = 0.01, μ = 4, 2500 rounds, seeds 1 to 5",
            study.about(linear_cases()),
            LINEAR_TEXT,
            table(
                [
                    "k/d",
                    "method",
                    "at round 2500",
                    "smallest record",
                    "arrived",
                    "away again",
                    "highest then",
                ],
                rows,
            ),
            "Differences from Top-k at round 2500, seed by seed, with 95 % intervals (below 0: nearer):",
            table(["k/d", *(f"{label} − Top-k" for label in list(SPARSIFIERS)[1:])], differences),
            "Against rounds, mean ± standard deviation of the seeds' log10:",
            table(
                ["round", *(f"{label}{f' {density:g}' if density else ''}" for label, density in shown)],
                curves,
            ),
        ]
    )


def _logs(runs: list[list[float]], record: int) -> list[float]:
    return [math.log10(run[record]) if run else math.nan for run in runs]


def _log(runs: list[list[float]], record: int) -> str:
    return spread(_logs(runs, record), ".1f")


def _end(runs: list[list[float]]) -> str:
    return _log(runs, -1)


def _smallest(runs: list[list[float]]) -> str:
    return spread([math.log10(min(run)) if run else math.nan for run in runs], ".1f")


def _arrived(runs: list[list[float]]) -> str:
    return f"{sum(min(run, default=1) < REACHED for run in runs)} of {len(runs)}" if all(runs) else "–"


def _later(runs: list[list[float]]) -> list[list[float]]:
    """What comes after a run's first record below `REACHED`, of the runs that have one."""
    arrived = [[value < REACHED for value in run] for run in runs]
    return [run[a.index(True) + 1 :] for run, a in zip(runs, arrived, strict=True) if any(a)]


def _away(runs: list[list[float]]) -> str:
    records = [value for run in _later(runs) for value in run]
    return f"{sum(value > REACHED for value in records)} of {len(records)}" if records else "–"


def _highest(runs: list[list[float]]) -> str:
    return spread([math.log10(max(run)) for run in _later(runs) if run], ".1f")


def _difference(every: dict[tuple[str, float | None], list[list[float]]], label: str, density: float) -> str:
    return paired(_logs(every[label, density], -1), _logs(every["Top-k", density], -1), "+.1f")
