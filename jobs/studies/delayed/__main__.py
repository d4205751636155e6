"""Delayed SGD: what delay does to the generalisation gap. Runs what is missing and writes RESULTS.md.

    python -m jobs.studies.delayed [least_squares|network …] [--quick 20] [--table-only]

Without a problem, both. Stop it at any time: the same command goes on. --quick 20 makes a twentieth of the
rounds, with two seeds, and writes into its runs' folder.
"""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path

from jobs.studies.command import arguments
from jobs.studies.delayed import tables
from jobs.studies.delayed.cases import PROBLEMS, Group, Problem, groups
from jobs.studies.figures import curves
from jobs.studies.study import Study

HERE = Path(__file__).resolve().parent

HEAD = """# Delayed SGD: what came out

Written by `python -m jobs.studies.delayed`; do not edit. [README.md](README.md) says what it means.
The gap is test loss minus training loss. In brackets: 95 % intervals over the seeds (Student's t), of
differences seed by seed."""


def main() -> None:
    """The command."""
    names = [problem.name for problem in PROBLEMS]
    asked = arguments(
        "delayed", __doc__, "problem", names, quick=(1, "a try with so many times fewer rounds")
    )
    quick = asked.quick
    study = Study("delayed" if quick == 1 else f"delayed-quick{quick}")
    every = {problem: _groups(problem, quick) for problem in PROBLEMS}
    try:
        if not asked.table_only:
            for problem, found in every.items():
                if problem.name in asked.chosen:
                    study.run([case for group in found.values() for case in group.cases()])
    finally:  # also the results so far of a study that was stopped
        folder = HERE if quick == 1 else study.directory
        folder.mkdir(parents=True, exist_ok=True)
        text = [f"{HEAD}\n\n{textwrap.fill(f'Machine: {study.where()}', 120)}"]
        for problem, found in every.items():
            text += tables.section(study, problem, found)
            draw(study, problem, found, folder / f"{problem.name}.svg")
        (folder / "RESULTS.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")


def _groups(problem: Problem, quick: int) -> dict[str, Group]:
    found = groups(problem, quick)
    if quick == 1:
        return found
    return {kind: replace(group, seeds=group.seeds[:2]) for kind, group in found.items()}


def draw(study: Study, problem: Problem, found: dict[str, Group], file: Path) -> None:
    """The gap against iterations, gradients and training loss; means over the seeds that are finished."""
    rows = []
    for label, group in (("on the schedule", found["schedule"]), ("all equally late", found["exact"])):
        panels: list[tuple[str, dict[str, tuple[list[float], list[float]]]]] = []
        for axis, name in (("iterations", "round"), ("gradients of a row", "gradients"), ("loss", "loss")):
            lines = {}
            for tau in group.taus:
                at, gaps = (
                    tables.mean_series(study, group, tau, key) for key in (name, "generalisation_gap")
                )
                if gaps:
                    lines[f"τ = {tau}"] = at[1:], gaps[1:]  # at the start it is chance
            panels.append((f"{label}, against {axis}", lines))
        rows.append(panels)
    if any(lines for panels in rows for _, lines in panels):
        curves(file, rows, "", "generalisation gap")


if __name__ == "__main__":
    main()
