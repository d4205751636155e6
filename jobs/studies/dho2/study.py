"""FOSI and DHO2's ADMM against heavy ball, Adam and L-BFGS: runs what is missing and writes RESULTS.md.

    python jobs/studies/dho2/study.py [PROBLEM …] [--ranks 2] [--quick 50] [--table-only]

The problems are least_squares, logistic, autoencoder, mlp and cnn; without one, all. Stop it at any time: the
same command goes on. --quick 50 makes a fiftieth of the rounds on one seed, elsewhere, and prints the tables.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[2])]

from cases import FIRST_ORDER, HYBRIDS, PROBLEMS, TARGETS, Plan, Problem, Variant  # noqa: E402
from common import Case, Study, spread, table  # noqa: E402

PARTS = (0.1, 0.25, 0.5, 1.0)
COSTS = {"rounds": ("round", 1, ",.0f"), "s": ("seconds", 1, ".2f")}
COSTS |= {"10³ gradients": ("gradients", 1e3, ",.0f"), "MB": ("bytes_workers", 1e6, ",.1f")}
"""head of a column -> metric, its unit, format"""
HEAD = """# DHO2: what came out

Written by `python jobs/studies/dho2/study.py`; do not edit. [README.md](README.md) says what it means.
Numbers are means ± standard deviations over seeds, which nobody tuned on. Seconds are those of the
optimisation clock: refreshes are on it, evaluations not. Gradients are of one row (a Hessian-vector product
counts as two), MB what all workers send, had each a rank of its own."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [problem.name for problem in PROBLEMS]
    parser.add_argument("problems", nargs="*", metavar="PROBLEM", help=f"of {', '.join(names)}; all if none")
    parser.add_argument("--ranks", type=int, default=2, help="of each run (default 2)")
    parser.add_argument("--quick", type=int, default=1, help="a try with so many times fewer rounds")
    parser.add_argument("--table-only", action="store_true", help="run nothing, only write RESULTS.md")
    arguments = parser.parse_args()
    if wrong := set(arguments.problems) - set(names):
        parser.error(f"{', '.join(sorted(wrong))}: no such problem; there are {', '.join(names)}")
    quick = arguments.quick
    plan = Plan(Study("dho2" if quick == 1 else f"dho2-quick{quick}"), arguments.ranks, quick)
    try:
        if not arguments.table_only:
            for problem in PROBLEMS:
                if problem.name in (arguments.problems or names):
                    plan.tune(problem)
                    plan.study.run([case for v in plan.variants(problem) for case in plan.finals(problem, v)])
    finally:  # also the results so far of a study that was stopped
        machine = textwrap.fill(f"Machine: {plan.study.where()}", 120)
        ready = [problem for problem in PROBLEMS if plan.targets(problem)]
        text = "\n\n".join([f"{HEAD}\n\n{machine}", *(section(plan, problem) for problem in ready)]) + "\n"
        if quick == 1:
            (HERE / "RESULTS.md").write_text(text, encoding="utf-8")
        else:
            print(text)


def section(plan: Plan, problem: Problem) -> str:
    """A problem's tables."""
    variants, targets = plan.variants(problem), plan.targets(problem)
    every = {variant: plan.finals(problem, variant) for variant in variants}
    about = plan.study.about([case for cases in every.values() for case in cases])
    parts = [f"{part:.0%}" for part in PARTS]
    text = [
        f"## {problem.label}",
        textwrap.fill(about, 120),
        f"Training loss after parts of {plan.rounds(problem):,} rounds (L-BFGS: of its own):",
        table(["", "η", *parts, "s", "MB"], [_course(plan, problem, *item) for item in every.items()]),
    ]
    for target, part in zip(targets, TARGETS, strict=False):
        text += [
            f"To a loss of {target:.4g}, which the best first-order method had after {part:.0%} of its "
            "rounds in the tuning; last, how many times the seconds the fastest first-order method took:",
            table(["", *COSTS, "times faster"], _race(plan.study, every, target)),
        ]
    return "\n\n".join([*text, _trials(plan, problem)])


def _course(plan: Plan, problem: Problem, variant: Variant, cases: list[Case]) -> list[str]:
    last = [len(plan.study.series(case, "loss")) - 1 for case in cases]
    records = [round(part * min(last)) if last else 0 for part in PARTS]
    losses = [spread(plan.study.column(cases, "loss", record), ".4g") for record in records]
    lr = plan.rate(problem, variant) if variant.tuned else None
    spent = [
        [v / unit for v in plan.study.column(cases, m, -1)]
        for m, unit in (("seconds", 1), ("bytes_workers", 1e6))
    ]
    ends = [spread(spent[0], ".1f"), spread(spent[1], ",.0f")]
    return [variant.label, "" if lr is None else f"{lr:g}", *losses, *ends]


def _race(study: Study, every: dict[Variant, list[Case]], target: float) -> list[list[str]]:
    """What each method spent until it had the loss, and how many times faster than the best it was."""
    seconds = {variant: _spent(study, cases, "seconds", target) for variant, cases in every.items()}
    baselines = [seconds[variant] for variant in FIRST_ORDER if _complete(seconds[variant])]
    best = min(baselines, key=sum, default=[])
    rows = []
    for variant, cases in every.items():
        if not _complete(seconds[variant]):
            ended = [
                values
                for case, values in zip(cases, seconds[variant], strict=True)
                if study.data(case) is not None
            ]
            missed = f"missed by {sum(map(math.isnan, ended))} of {len(ended)} runs" if ended else "–"
            rows.append([variant.label, missed, *[""] * len(COSTS)])
            continue
        spent = [[v / unit for v in _spent(study, cases, m, target)] for m, unit, _ in COSTS.values()]
        shown = [spread(values, form) for values, (_, _, form) in zip(spent, COSTS.values(), strict=True)]
        ratios = [a / b for a, b in zip(best, seconds[variant], strict=True)] if best else []
        rows.append([variant.label, *shown, spread(ratios)])
    return rows


def _spent(study: Study, cases: list[Case], metric: str, target: float) -> list[float]:
    """A metric of each run at its first record with the loss; nan where it had it never."""
    found = []
    for case in cases:
        pairs = zip(study.series(case, "loss"), study.series(case, metric), strict=True)
        found.append(next((spent for loss, spent in pairs if loss <= target), math.nan))
    return found


def _complete(values: list[float]) -> bool:
    return bool(values) and not any(map(math.isnan, values))


def _trials(plan: Plan, problem: Problem) -> str:
    """The loss at the end for every rate that was tried."""
    lines = []
    for variant in (*FIRST_ORDER, *HYBRIDS):
        best, trials = plan.rate(problem, variant), plan.trials(problem, variant)
        cells = [
            f"{'**' * (lr == best)}{lr:g}: {loss:.4g}{'**' * (lr == best)}" for lr, loss in trials.items()
        ]
        lines.append(f"- {variant.label}: {', '.join(cells)}")
    return "\n".join(["Loss at the end of the tuning's runs, by rate:", "", *lines])


if __name__ == "__main__":
    main()
