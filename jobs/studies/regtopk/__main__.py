"""RegTop-k against dense SGD, Top-k, random-k and PowerSGD: runs what is missing and writes RESULTS.md.

    python -m jobs.studies.regtopk [PART …] [--ranks 2] [--table-only]

The parts are toy, linear, tune, fashion (which needs tune) and why; without one, all. Stop it at any time:
the same command goes on.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from jobs.studies.command import arguments
from jobs.studies.regtopk import analytic, comparison, fashion, why
from jobs.studies.study import Study
from jobs.studies.tuning import tune

HERE = Path(__file__).resolve().parent

PARTS = ("toy", "linear", "tune", "fashion", "why")
HEAD = """# RegTop-k: what came out

Written by `python -m jobs.studies.regtopk`; do not edit. [README.md](README.md) says what it means.
Numbers are means ± standard deviations over seeds; intervals are 95 %, Student's t on differences between
runs with the same seed (same data, start and mini-batches)."""


def main() -> None:
    """The command."""
    ranks = (2, "of the Fashion-MNIST runs (default 2)")
    asked = arguments("regtopk", __doc__, "part", PARTS, ranks=ranks)
    study = Study("regtopk")
    try:
        if not asked.table_only:
            run(study, asked.chosen, asked.ranks)
    finally:  # also the results so far of a study that was stopped
        write(study)


def run(study: Study, parts: list[str] | tuple[str, ...], ranks: int) -> None:
    """Runs what is missing of some parts, in the order of `PARTS`."""
    if "toy" in parts:
        study.run(list(analytic.toy_cases().values()))
    if "linear" in parts:
        study.run(analytic.linear_cases())
    if {"tune", "fashion", "why"} & set(parts):
        tune(study, [fashion.tuning(study, variant, ranks) for variant in fashion.variants()])
    if "fashion" in parts:
        study.run(comparison.final_cases(study, ranks))
    if "why" in parts:
        why.measure(study)


def write(study: Study) -> None:
    """Writes RESULTS.md from all finished runs."""
    sections = [
        f"{HEAD}\n\n{textwrap.fill(f'Machine: {study.where()}', 120)}",
        analytic.toy_section(study),
        analytic.linear_section(study),
        comparison.section(study),
        fashion.tuning_section(study),
        why.section(study),
    ]
    (HERE / "RESULTS.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
