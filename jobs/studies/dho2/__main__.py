"""DHO2 against heavy ball, Adam, L-BFGS and outer momentum: runs what is missing and writes RESULTS.md.

    python -m jobs.studies.dho2 [PROBLEM …] [--ranks 1] [--quick 50] [--table-only]

The problems are least_squares, logistic, autoencoder, mlp and cnn; without one, all. Stop it at any time: the
same command goes on. --quick 50 makes a fiftieth of the rounds on fewer seeds, and writes into its runs'
folder.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

from jobs.studies.command import arguments
from jobs.studies.dho2 import gains
from jobs.studies.dho2.cases import PROBLEMS, TARGETS, Plan, Problem
from jobs.studies.dho2.lines import FIRST_ORDER, TUNED, Line
from jobs.studies.figures import curves
from jobs.studies.markdown import table
from jobs.studies.statistics import spread
from jobs.studies.study import Case, Study

HERE = Path(__file__).resolve().parent

PARTS = (0.1, 0.25, 0.5, 1.0)
COSTS: dict[str, tuple[str, float, str]] = {"rounds": ("round", 1, ",.0f"), "s": ("seconds", 1, ".2f")}
COSTS |= {"10³ gradients": ("gradients", 1e3, ",.0f"), "MB": ("bytes_workers", 1e6, ",.1f")}
"""head of a column -> metric, its unit, format"""
HEAD = """# DHO2: what came out

Written by `python -m jobs.studies.dho2`; do not edit. [README.md](README.md) says what it means.
Numbers are means ± standard deviations over seeds, which nobody tuned on. Seconds are those of the
optimisation clock: refreshes are on it, evaluations not. Gradients are of one row (a Hessian-vector product
counts as two), MB what all workers send, had each a rank of its own."""


def main() -> None:
    """The command."""
    names = [problem.name for problem in PROBLEMS]
    ranks, quick = (1, "of each run (default 1)"), (1, "a try with so many times fewer rounds")
    asked = arguments("dho2", __doc__, "problem", names, ranks=ranks, quick=quick)
    quick = asked.quick
    plan = Plan(Study("dho2" if quick == 1 else f"dho2-quick{quick}"), asked.ranks, quick)
    try:
        if not asked.table_only:
            wanted = [problem for problem in PROBLEMS if problem.name in asked.chosen]
            for problem in wanted:
                plan.tune(problem)
            # in one stretch, for the sake of their seconds
            for problem in wanted:
                plan.study.run(plan.all_finals(problem))
    finally:  # also the results so far of a study that was stopped
        machine = textwrap.fill(f"Machine: {plan.study.where()}", 120)
        ready = [problem for problem in PROBLEMS if plan.targets(problem)]
        text = "\n\n".join([f"{HEAD}\n\n{machine}", *(section(plan, problem) for problem in ready)]) + "\n"
        folder = HERE if quick == 1 else plan.study.directory
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "RESULTS.md").write_text(text, encoding="utf-8")
        for problem in ready:
            draw(plan, problem, folder / f"{problem.name}.svg")


def section(plan: Plan, problem: Problem) -> str:
    """A problem's tables."""
    targets = plan.targets(problem)
    every = {line: plan.finals(problem, line) for line in plan.lines(problem)}
    about = plan.study.about(plan.all_finals(problem))
    parts = [f"{part:.0%}" for part in PARTS]
    text = [
        f"## {problem.label}",
        textwrap.fill(about, 120),
        "Training loss after parts of all rounds:",
        table(["", "η", *parts, "s", "MB"], [_course(plan, problem, *item) for item in every.items()]),
    ]
    for target, part in zip(targets, TARGETS, strict=False):
        text += [
            f"To a loss of {target:.4g}, which the best first-order method had after {part:.0%} of its "
            "rounds in the tuning; last, how many times the seconds the fastest first-order method took:",
            table(["", *COSTS, "times faster"], _race(plan.study, every, target)),
        ]
    figure = f"Loss on the first seed: ![{problem.name}]({problem.name}.svg)"
    return "\n\n".join([*text, gains.section(plan, problem), figure, _trials(plan, problem)])


def draw(plan: Plan, problem: Problem, file: Path) -> None:
    """The loss against rounds, seconds and bytes, on the first seed."""
    study, cases = plan.study, {line.label: plan.finals(problem, line)[:1] for line in plan.lines(problem)}
    panels: list[tuple[str, dict[str, tuple[list[float], list[float]]]]] = []
    for head, metric, unit in (
        ("rounds", "round", 1),
        ("seconds", "seconds", 1),
        ("MB", "bytes_workers", 1e6),
    ):
        drawn = {
            label: ([value / unit for value in study.series(case, metric)], study.series(case, "loss"))
            for label, found in cases.items()
            for case in found
            if study.data(case) is not None
        }
        panels.append((f"against {head}", drawn))
    curves(file, [panels], "", "training loss")


def _course(plan: Plan, problem: Problem, line: Line, cases: list[Case]) -> list[str]:
    last = [len(plan.study.series(case, "loss")) - 1 for case in cases]
    records = [round(part * min(last)) if last else 0 for part in PARTS]
    losses = [spread(plan.study.column(cases, "loss", record), ".4g") for record in records]
    lr = plan.rate(problem, line)
    spent = [
        [v / unit for v in plan.study.column(cases, m, -1)]
        for m, unit in (("seconds", 1), ("bytes_workers", 1e6))
    ]
    ends = [spread(spent[0], ".1f"), spread(spent[1], ",.0f")]
    return [line.label, "" if lr is None else f"{lr:g}", *losses, *ends]


def _race(study: Study, every: dict[Line, list[Case]], target: float) -> list[list[str]]:
    """What each method spent until it had the loss, and how many times faster than the best it was."""

    def spent(line: Line, metric: str) -> list[float]:
        return [gains.spent(study, case, math.log(target), metric) for case in every[line]]

    seconds = {line: spent(line, "seconds") for line in every}
    baselines = [seconds[line] for line in FIRST_ORDER if _complete(seconds[line])]
    best = min(baselines, key=sum, default=[])
    rows = []
    for line in every:
        if not _complete(seconds[line]):
            ended = [value for value in seconds[line] if not math.isnan(value)]
            missed = f"missed by {sum(map(math.isinf, ended))} of {len(ended)} runs" if ended else "–"
            rows.append([line.label, missed, *[""] * len(COSTS)])
            continue
        costs = [[value / unit for value in spent(line, metric)] for metric, unit, _ in COSTS.values()]
        shown = [spread(values, form) for values, (_, _, form) in zip(costs, COSTS.values(), strict=True)]
        ratios = [a / b for a, b in zip(best, seconds[line], strict=True)] if best else []
        rows.append([line.label, *shown, spread(ratios)])
    return rows


def _complete(values: list[float]) -> bool:
    return bool(values) and all(map(math.isfinite, values))


def _trials(plan: Plan, problem: Problem) -> str:
    """The loss at the end for every rate that was tried."""
    lines = []
    for line in (*FIRST_ORDER, *TUNED):
        best, trials = plan.rate(problem, line), plan.tuning(problem, line).trials()
        cells = [
            f"{'**' * (lr == best)}{lr:g}: {loss:.4g}{'**' * (lr == best)}" for lr, loss in trials.items()
        ]
        lines.append(f"- {line.label}: {', '.join(cells)}")
    return "\n".join(["Loss at the end of the tuning's runs, by rate:", "", *lines])


if __name__ == "__main__":
    main()
