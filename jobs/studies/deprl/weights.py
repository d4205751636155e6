"""Metropolis, Laplacian and uniform mixing weights on irregular graphs: what gossip agrees on."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.studies.markdown import table
from jobs.studies.statistics import paired, spread
from jobs.studies.study import Case, Study

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hpcopt.math.mixing import Report

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "weights.toml"
TOPOLOGIES = {"star": "star", "erdos_renyi": "Erdős–Rényi, p = 0.25"}
WEIGHTS = {"star": ("metropolis", "uniform"), "erdos_renyi": ("metropolis", "laplacian", "uniform")}
"""on a star Metropolis and Laplacian weights are the same"""
SEEDS, N = (1, 2, 3), 16
ROUNDING = 1e-20
"""a squared distance below which two minimisers are the same"""
FASHION, STAR_WEIGHTS = {"dpsgd": "D-PSGD", "deprl": "DePRL"}, ("metropolis", "uniform")
LINEAR_TEXT = """Linear regression, D-PSGD with one exact gradient per round and a rate that falls to 0; a
number per seed. π: the left Perron vector of W, πᵀW = πᵀ, which says how much each worker counts in the
consensus. x*: the minimiser of the mean of the workers' losses f_n; x_π: that of Σ π_n f_n, both from the
normal equations. Measured is the mean model x̄ at the end: a consensus that is the mean goes to x*, one
weighted by π to x_π. What is left where x_π = x* is due to the steps, which are not infinitely small."""
FASHION_TEXT = """Fashion-MNIST, `mlp`, 100 images per worker, Dirichlet(0.1), 100 rounds, star. «Shared»: of
the mean model, on all test rows; «own»: of the workers' models, on test rows with the labels of their own
training rows. The mean of DePRL's heads is nobody's head, so its shared model is expected to be poor.
Differences are seed by seed, with 95 % intervals."""


def linear_case(topology: str, weights: str, seed: int) -> Case:
    """D-PSGD on linear regression."""
    settings = {"method.topology": topology, "method.mixing": weights, "run.seed": seed}
    return Case(f"linear-{topology}-{weights}-seed{seed}", CONFIG, settings)


def fashion_case(method: str, weights: str, seed: int) -> Case:
    """D-PSGD or DePRL on a star."""
    settings = {
        "run.method": method,
        "run.evaluate_every": 100,
        "run.seed": seed,
        "method.topology": "star",
        "method.mixing": weights,
    }
    return Case(f"fashion-{method}-{weights}-seed{seed}", HERE / "consensus.toml", settings)


def run(study: Study) -> None:
    """Runs what is missing."""
    study.run(_all_cases())


def section(study: Study) -> str:
    """Where the mean model ends, beside the prediction, and what that costs in accuracy."""
    cases = _all_cases()
    linear = [
        _linear_row(study, topology, weights) for topology in TOPOLOGIES for weights in WEIGHTS[topology]
    ]
    return "\n\n".join(
        [
            f"## Mixing weights on irregular graphs: N = {N}, seeds {SEEDS[0]} to {SEEDS[-1]}",
            study.about(cases),
            LINEAR_TEXT,
            table(
                [
                    "graph",
                    "weights",
                    "column sums of W",
                    "N π",
                    "modulus of λ₂",
                    "‖x_π − x*‖²",
                    "‖x̄ − x*‖² measured",
                    "gap f(x̄) − f(x*)",
                ],
                linear,
            ),
            FASHION_TEXT,
            table(
                ["method", "weights", "shared accuracy %", "own accuracy %", "training loss"],
                [row for method in FASHION for row in _fashion_rows(study, method)],
            ),
        ]
    )


def _all_cases() -> list[Case]:
    linear = [linear_case(t, w, seed) for t in TOPOLOGIES for w in WEIGHTS[t] for seed in SEEDS]
    return linear + [fashion_case(m, w, seed) for m in FASHION for w in STAR_WEIGHTS for seed in SEEDS]


# --- linear regression: where the mean model goes --------------------------------------------------------


def _linear_row(study: Study, topology: str, weights: str) -> list[str]:
    cases = [linear_case(topology, weights, seed) for seed in SEEDS]
    graphs = [_graph(topology, weights, seed) for seed in SEEDS]
    shifts = [_shift(pi, seed) for (_, pi), seed in zip(graphs, SEEDS, strict=True)]
    lowest, highest = (bound(g.column_sums[at] for g, _ in graphs) for at, bound in ((0, min), (1, max)))
    counts = N * np.concatenate([pi for _, pi in graphs])
    return [
        TOPOLOGIES[topology],
        weights,
        f"{lowest:.2f} … {highest:.2f}",
        f"{counts.min():.2f} … {counts.max():.2f}",
        spread([g.lambda2 for g, _ in graphs[: 1 if topology == "star" else None]], ".3f"),
        _each(shifts),
        _each(study.column(cases, "global_distance")),
        _each(study.column(cases, "global_gap")),
    ]


def _each(values: list[float]) -> str:
    """A number per seed: they have nothing to do with each other."""
    rounded = [0.0 if value < ROUNDING else value for value in values]
    return ", ".join("–" if math.isnan(value) else f"{value:.3g}" for value in rounded)


def _graph(topology: str, weights: str, seed: int) -> tuple[Report, NDArray[np.float64]]:
    """What is known of a run's W, and π: the left eigenvector to the eigenvalue 1, which sums to 1."""
    from hpcopt.math.mixing import check, mixing

    mixed = mixing(topology, weights, N, seed=seed)
    values, vectors = np.linalg.eig(mixed.at(0).toarray().T)
    pi = vectors[:, np.argmax(values.real)].real
    return check(mixed), pi / pi.sum()


def _shift(pi: NDArray[np.float64], seed: int) -> float:
    """‖x_π − x*‖²."""
    return float(((_minimiser(pi, seed) - _minimiser(np.full(N, 1 / N), seed)) ** 2).sum())


def _minimiser(pi: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Of Σ π_n f_n, from the workers' normal equations."""
    systems = _normal_equations(seed)
    H, c = (sum(p * system[at] for p, system in zip(pi, systems, strict=True)) for at in (0, 1))
    return np.linalg.solve(H, c)


@cache
def _normal_equations(seed: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """AᵀA and Aᵀb of every worker, up to a common factor."""
    from hpcopt.config import load
    from hpcopt.problems.linear_regression import LinearRegression

    recipe = LinearRegression(workers=N, **load(CONFIG, []).problem.model_dump(exclude={"kind"}))
    return [(A.T @ A, A.T @ b) for A, b in (recipe.data(n, seed) for n in range(N))]


# --- Fashion-MNIST: what it costs ------------------------------------------------------------------------


def _fashion_rows(study: Study, method: str) -> list[list[str]]:
    first, second = (
        _measures(study, [fashion_case(method, weights, seed) for seed in SEEDS]) for weights in STAR_WEIGHTS
    )
    label, forms = FASHION[method], (".2f", ".2f", ".4f")
    rows = [
        [label, weights, *(spread(v, form) for v, form in zip(measured, forms, strict=True))]
        for weights, measured in zip(STAR_WEIGHTS, (first, second), strict=True)
    ]
    differences = [paired(a, b, f"+{form}") for a, b, form in zip(first, second, forms, strict=True)]
    return [*rows, [label, " − ".join(STAR_WEIGHTS), *differences]]


def _measures(study: Study, cases: list[Case]) -> list[list[float]]:
    shared, own = (
        [100 * value for value in study.column(cases, name)] for name in ("global_accuracy", "accuracy")
    )
    return [shared, own, study.column(cases, "loss")]
