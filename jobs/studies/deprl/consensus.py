"""How far DePRL's representations are from agreement, over rounds and graphs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.studies.markdown import table
from jobs.studies.statistics import spread
from jobs.studies.study import Case, Study

if TYPE_CHECKING:
    from hpcopt.math.mixing import Mixing

CONFIG = Path(__file__).resolve().parent / "consensus.toml"
TOPOLOGIES = {
    "ring": "ring",
    "erdos_renyi": "Erdős–Rényi, p = 0.25",
    "one_peer_exponential": "one-peer exponential",
    "exponential": "exponential",
    "complete": "complete",
}
LARGE = ("ring", "exponential")
SEEDS = {16: (1, 2, 3), 64: (1,)}
"""workers N -> seeds"""
EVERY, ROUNDS = 5, (5, 10, 20, 50, 100)
TEXT = """Mean over the workers of ‖φ_i − φ̄‖² after the round's mixing, Metropolis weights; 5 steps on the
head and 5 on the representation, η = 0.05, 100 images per worker, Dirichlet(0.1). «From W alone»: what W
(of the first seed) makes of changes of unit size that the workers make in every one of 100 rounds, if they
are independent of each other in every round, and if each worker's is the same in all rounds. One-peer graphs
agree exactly after 4 rounds without changes, which is their 0 in the third column."""


def case(topology: str, N: int, seed: int) -> Case:
    """One run."""
    settings = {"run.workers": N, "run.seed": seed, "run.evaluate_every": EVERY, "method.topology": topology}
    return Case(f"{topology}-n{N}-seed{seed}", CONFIG, settings)


def run(study: Study) -> None:
    """Runs what is missing."""
    study.run([case for N, topology in _rows() for case in _cases(topology, N)])


def section(study: Study) -> str:
    """The distance from agreement at some rounds, and what W alone would make of it."""
    cases = [case for N, topology in _rows() for case in _cases(topology, N)]
    return "\n\n".join(
        [
            f"## Consensus: ‖φ_i − φ̄‖² over rounds, seeds 1 to {len(SEEDS[16])} (N = 64: seed 1)",
            study.about(cases),
            TEXT,
            table(
                [
                    "N",
                    "graph",
                    "modulus of λ₂",
                    *(f"round {r}" for r in ROUNDS),
                    "from W alone: independent",
                    "always the same",
                ],
                [_row(study, N, topology) for N, topology in _rows()],
            ),
        ]
    )


def _rows() -> list[tuple[int, str]]:
    return [(16, topology) for topology in TOPOLOGIES] + [(64, topology) for topology in LARGE]


def _cases(topology: str, N: int) -> list[Case]:
    return [case(topology, N, seed) for seed in SEEDS[N]]


def _row(study: Study, N: int, topology: str) -> list[str]:
    from hpcopt.math.mixing import check, mixing

    graphs = [mixing(topology, "metropolis", N, seed=seed) for seed in SEEDS[N]]
    lambdas = [check(graph).lambda2 for graph in graphs]
    cases = _cases(topology, N)
    measured = [spread(study.column(cases, "consensus", r // EVERY), ".2g") for r in ROUNDS]
    return [
        str(N),
        TOPOLOGIES[topology],
        spread(lambdas if topology == "erdos_renyi" else lambdas[:1], ".3f"),
        *measured,
        *(f"{value:.3g}" for value in disagreement(graphs[0], ROUNDS[-1])),
    ]


def disagreement(graph: Mixing, rounds: int) -> tuple[float, float]:
    """The mean of ‖φ_i − φ̄‖² if every worker adds a change of unit size before each mixing.

    Args:
        graph: the mixing matrices.
        rounds: how many.

    Returns:
        If changes are independent over workers and rounds; if each worker's is the same in all rounds.
    """
    N = graph.N
    centre = np.eye(N) - 1 / N
    covariance, summed = np.zeros((N, N)), np.zeros((N, N))
    for t in range(rounds):
        W = graph.at(t).toarray()
        covariance = W @ (covariance + np.eye(N)) @ W.T
        summed = W @ (summed + np.eye(N))
    return float(np.trace(centre @ covariance)) / N, float(np.square(centre @ summed).sum()) / N
