"""DePRL against shared models and workers by themselves: runs what is missing and writes RESULTS.md.

    python -m jobs.studies.deprl [PART …] [--table-only]

The parts are table16, table128, newcomers, speedup, weights and consensus; without one, all. Stop it at any
time: the same command goes on.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

from jobs.studies.command import arguments
from jobs.studies.deprl import consensus, newcomers, personal, personal_tables, speedup, weights
from jobs.studies.study import Study

HERE = Path(__file__).resolve().parent

HEAD = """# DePRL: what came out

Written by `python -m jobs.studies.deprl`; do not edit. [README.md](README.md) says what it means.
Numbers are means ± standard deviations over seeds; intervals are 95 %, Student's t on differences between
runs with the same seed (same data, start and mini-batches)."""


def _table(workers: int) -> tuple[Callable[[Study], None], Callable[[Study], str]]:
    return (
        lambda study: study.run(personal.cases(workers)),
        lambda study: personal_tables.section(study, workers),
    )


PARTS = {
    "table16": _table(16),
    "table128": _table(128),
    "newcomers": (newcomers.run, newcomers.section),
    "speedup": (speedup.run, speedup.section),
    "weights": (weights.run, weights.section),
    "consensus": (consensus.run, consensus.section),
}
"""name -> (runs what is missing, gives its section of RESULTS.md), in the order of both"""


def main() -> None:
    """The command."""
    asked = arguments("deprl", __doc__, "part", PARTS)
    studies = {part: Study(f"deprl/{part}") for part in PARTS}
    try:
        if not asked.table_only:
            for part, (run, _) in PARTS.items():
                if part in asked.chosen:
                    run(studies[part])
    finally:  # also the results so far of a study that was stopped
        write(studies)


def write(studies: dict[str, Study]) -> None:
    """Writes RESULTS.md from all finished runs."""
    machine = textwrap.fill(f"Machine: {studies['table16'].where()}", 120)
    sections = [f"{HEAD}\n\n{machine}", *(section(studies[part]) for part, (_, section) in PARTS.items())]
    (HERE / "RESULTS.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
