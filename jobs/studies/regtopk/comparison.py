"""Fashion-MNIST with a Dirichlet(0.1) split: the runs at the tuned learning rates, and their tables."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.studies.markdown import table
from jobs.studies.regtopk.fashion import (
    CONFIG,
    DENSITIES,
    OTHER_MUS,
    WORKERS,
    layout,
    nearest_rank,
    rank_bytes,
    sparse_bytes,
    tuning,
    variants,
)
from jobs.studies.statistics import paired, spread
from jobs.studies.study import Case, Study
from jobs.studies.tuning import Variant

SEEDS, ROUNDS, EVERY = (1, 2, 3), 1875, 625


def final_case(study: Study, variant: Variant, seed: int, ranks: int = 1) -> Case | None:
    """A run of the comparison; None while its learning rate is not known."""
    lr = tuning(study, variant).rate()
    if lr is None:
        return None
    settings = variant.settings | {"run.seed": seed, "method.lr": lr}
    return Case(f"fashion/{variant.name}-seed{seed}", CONFIG, settings, ranks)


def final_cases(study: Study, ranks: int = 1) -> list[Case]:
    """All of them, seed by seed."""
    found = [final_case(study, variant, seed, ranks) for seed in SEEDS for variant in variants()]
    return [case for case in found if case is not None]


def section(study: Study) -> str:
    """Accuracy and losses at the end, the paired differences, and accuracy against rounds and bytes."""
    every = {v: [c for s in SEEDS if (c := final_case(study, v, s)) is not None] for v in variants()}
    return "\n\n".join(
        [
            "## Fashion-MNIST: `cnn`, 8 workers, Dirichlet(0.1), batches of 16, 4 epochs, seeds 1 to 3",
            study.about([case for cases in every.values() for case in cases]),
            _budgets(),
            table(
                ["method", "η", "accuracy %", "test loss", "training loss", "MB sent", "% of dense"],
                [_end(study, variant, cases) for variant, cases in every.items()],
            ),
            "Differences at the end, seed by seed, with 95 % intervals (3 seeds: t = 4.30):",
            table(
                ["pair", "accuracy, points", "test loss", "training loss"],
                [_difference(study, every, *pair) for pair in _pairs()],
            ),
            "Accuracy % against rounds, and MB sent by then:",
            table(
                [
                    "method",
                    *(f"round {EVERY * i}" for i in (1, 2, 3)),
                    *(f"MB at {EVERY * i}" for i in (1, 2, 3)),
                ],
                [_course(study, variant, cases) for variant, cases in every.items()],
            ),
        ]
    )


def _budgets() -> str:
    near, (low, high) = nearest_rank(), DENSITIES
    ranks = ", ".join(f"{rank_bytes(r):,.0f} ({r})" for r in sorted({1, near - 1, near, near + 1} - {0}))
    sparse = " and ".join(f"{sparse_bytes(density):,} ({density})" for density in DENSITIES)
    return f"""d = {layout().dim:,}. Bytes that a worker sends per round: Top-k {sparse} by allgather;
PowerSGD (rank) {ranks}: rank {near} is nearest to Top-k at {high},
and rank 1 needs {rank_bytes(1) / sparse_bytes(low):.2f} times what Top-k at {low} does.
random-k sends no indices. RegTop-k has μ = 4 unless another is named.
MB: 10⁶ `bytes_workers`, all {WORKERS} workers together."""


def _accuracy(study: Study, cases: Sequence[Case], record: int = -1) -> list[float]:
    return [100 * value for value in study.column(cases, "accuracy", record)]


def _megabytes(study: Study, cases: Sequence[Case], record: int = -1) -> list[float]:
    """The mean over the seeds, which differ by a few of a thousand: as their masks overlap."""
    values = [value / 1e6 for value in study.column(cases, "bytes_workers", record)]
    return [sum(values) / len(values)] if values else []


def _end(study: Study, variant: Variant, cases: Sequence[Case]) -> list[str]:
    dense = 2 * 4 * layout().dim * (WORKERS - 1) * ROUNDS / 1e6
    lr, sent = tuning(study, variant).rate(), _megabytes(study, cases)
    return [
        variant.label,
        "–" if lr is None else f"{lr:g}",
        spread(_accuracy(study, cases), ".2f"),
        _losses(study, cases, "test_loss"),
        _losses(study, cases, "loss"),
        spread(sent, ",.0f"),
        spread([100 * value / dense for value in sent[:1]], ".2f"),
    ]


def _losses(study: Study, cases: Sequence[Case], name: str) -> str:
    diverged = sum(data.attrs["stopped_by"] == "not finite" for _, data in study.finished(cases))
    return f"{diverged} diverged" if diverged else spread(study.column(cases, name), ".4f")


def _course(study: Study, variant: Variant, cases: Sequence[Case]) -> list[str]:
    records = (1, 2, 3)
    accuracies = [spread(_accuracy(study, cases, record), ".2f") for record in records]
    return [variant.label, *accuracies, *(spread(_megabytes(study, cases, r), ",.0f") for r in records)]


def _pairs() -> list[tuple[str, str]]:
    """Names of variants: RegTop-k and the Top-k of the same density, then Top-k and its rivals."""
    low, high = DENSITIES
    mus = [(f"regtopk-{low}-mu{mu:g}", f"topk-{low}") for mu in OTHER_MUS]
    rivals = [(f"topk-{low}", rival) for rival in ("dense", "powersgd-1", f"randomk-{high}")]
    rivals += [(f"topk-{high}", rival) for rival in ("dense", f"powersgd-{nearest_rank()}")]
    return [(f"regtopk-{low}", f"topk-{low}"), *mus, (f"regtopk-{high}", f"topk-{high}"), *rivals]


def _difference(study: Study, every: dict[Variant, list[Case]], first: str, second: str) -> list[str]:
    found = {variant.name: (variant.label, cases) for variant, cases in every.items()}
    (label, a), (other, b) = found[first], found[second]
    return [
        f"{label} − {other}",
        paired(_accuracy(study, a), _accuracy(study, b), "+.2f"),
        paired(study.column(a, "test_loss"), study.column(b, "test_loss"), "+.4f"),
        paired(study.column(a, "loss"), study.column(b, "loss"), "+.4f"),
    ]
