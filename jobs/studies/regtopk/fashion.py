"""Fashion-MNIST with a Dirichlet(0.1) split: what is compared, at which budgets and learning rates."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

from jobs.studies.markdown import table
from jobs.studies.study import Case, Study
from jobs.studies.tuning import Tuning, Variant

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "fashion.toml"
WORKERS, DENSITIES = 8, (0.001, 0.01)
MU = 4.0
OTHER_MUS = (1.0, 16.0)
"""tried at the lower density, beside the paper's"""
GRID = (0.05, 0.1, 0.2, 0.4)
EXTENSIONS = 2
"""how often the grid grows by a factor of 2 where its best value is its first or last"""
TUNING_SEED, TUNING_ROUNDS = 100, 625
TUNING_TEXT = f"""Grid {", ".join(map(str, GRID))}; where its best value is at an edge, one more beyond it,
at most {EXTENSIONS} times. The best (bold) is used above."""


def variants() -> list[Variant]:
    """Everything that is compared."""
    found = [Variant("dense", "dense", {"run.method": "allreduce_sgd"})]
    for density in DENSITIES:
        for method, label in (("topk", "Top-k"), ("regtopk", "RegTop-k"), ("randomk", "random-k")):
            settings = {"run.method": method, "method.density": density}
            found.append(Variant(f"{method}-{density}", f"{label} {density}", settings | _mu(method, MU)))
    for mu in OTHER_MUS:
        settings = {"run.method": "regtopk", "method.density": DENSITIES[0]} | _mu("regtopk", mu)
        label = f"RegTop-k {DENSITIES[0]}, μ = {mu:g}"
        found.append(Variant(f"regtopk-{DENSITIES[0]}-mu{mu:g}", label, settings))
    for rank in sorted({1, nearest_rank()}):
        settings = {"run.method": "powersgd", "method.rank": rank}
        found.append(Variant(f"powersgd-{rank}", f"PowerSGD, rank {rank}", settings))
    return found


def _mu(method: str, mu: float) -> dict[str, Any]:
    return {"method.mu": mu} if method == "regtopk" else {}


# --- budgets ---------------------------------------------------------------------------------------------


def sparse_bytes(density: float) -> int:
    """Bytes that a worker sends per round with Top-k, by allgather of (index, value)."""
    return 8 * int(density * layout().dim + 0.5) * (WORKERS - 1)


def rank_bytes(rank: int) -> float:
    """Bytes that a worker sends per round with PowerSGD, by two allreduces."""
    from hpcopt.math.low_rank import packed

    numbers = sum(layout.dim for layout in packed(layout(), rank))
    return 2 * 4 * numbers * (WORKERS - 1) / WORKERS


@cache
def nearest_rank() -> int:
    """PowerSGD's rank whose bytes are nearest to those of Top-k at the larger density."""
    return min(range(1, 33), key=lambda rank: abs(rank_bytes(rank) - sparse_bytes(DENSITIES[1])))


@cache
def layout() -> Any:
    from hpcopt.math.flat import Layout
    from hpcopt.problems import models

    model = models.build("cnn", (1, 28, 28), 10, [], 0.0)
    return Layout.of([(name, tuple(tensor.shape)) for name, tensor in model.named_parameters()])


# --- learning rates --------------------------------------------------------------------------------------


def tuning_case(variant: Variant, lr: float, ranks: int = 1) -> Case:
    """A short run with a seed that the comparison does not use."""
    changes = {
        "run.seed": TUNING_SEED,
        "run.rounds": TUNING_ROUNDS,
        "run.evaluate_every": TUNING_ROUNDS,
        "method.lr": lr,
    }
    return Case(f"tune/{variant.name}-lr{lr:g}", CONFIG, variant.settings | changes, ranks)


def tuning(study: Study, variant: Variant, ranks: int = 1) -> Tuning:
    """A method's trials."""
    return Tuning(study, lambda lr: tuning_case(variant, lr, ranks), GRID, 2, EXTENSIONS)


def tuning_section(study: Study) -> str:
    """The training loss for every rate."""
    rates = sorted({lr for variant in variants() for lr in tuning(study, variant).trials()})
    rows, cases = [], []
    for variant in variants():
        mine, best = tuning(study, variant).trials(), tuning(study, variant).rate()
        cases += [tuning_case(variant, lr) for lr in mine]
        cells = [_cell(mine[lr]) if lr in mine else "" for lr in rates]
        rows.append(
            [variant.label, *(f"**{c}**" if lr == best else c for lr, c in zip(rates, cells, strict=True))]
        )
    return "\n\n".join(
        [
            f"## Learning rates: training loss after {TUNING_ROUNDS} rounds, seed {TUNING_SEED}",
            study.about(cases),
            TUNING_TEXT,
            table(["method", *(f"η = {lr:g}" for lr in rates)], rows),
        ]
    )


def _cell(loss: float) -> str:
    return "–" if math.isnan(loss) else "diverged" if math.isinf(loss) else f"{loss:.4f}"
