"""FADL and common directions against TRON, L-BFGS and CoCoA+: runs what is missing, writes RESULTS.md.

    python -m jobs.studies.fadl [PROBLEM …] [--table-only]

A problem is DATA-LOSS-λ/n, such as text-logistic-1e-4; without one, all eight. Stop it at any time: the same
command goes on. The text comes from tools/text_data, which is run where it is missing.
"""

from __future__ import annotations

import json
import subprocess
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from hpcopt.config import load
from hpcopt.engine.optimum import optimum
from jobs.studies.command import arguments
from jobs.studies.figures import curves
from jobs.studies.launch import ROOT
from jobs.studies.markdown import table
from jobs.studies.study import Case, Study

HERE = Path(__file__).resolve().parent

WORKERS = (8, 32, 128)
MOST_PASSES = 200
GAPS = (1e-3, 1e-6)
OPTIMA = "optima.json"
CLASSES = {"text": 2, "fashion": 10}
HEAD = """# FADL and common directions: what came out

Written by `python -m jobs.studies.fadl`; do not edit. [README.md](README.md) says what it means.
Passes (allreduces of d numbers) from w = 0 until f/f* − 1 is at most 1e-3, and at most 1e-6, in float64; a
run ends there, or after 200 passes. Methods for which the split of the rows is of no importance were run with
8 workers. Beside them, for N = 8 and until the first gap: what all sums handed over, in bytes of the passes
alone, and how many small sums there were."""


class Method(NamedTuple):
    """A line of the tables: a method and its settings; whether what it does depends on N."""

    name: str
    settings: dict[str, Any]
    passes: int
    """the fewest of a round"""
    split: bool = True
    by_label: bool = False
    """whether a worker has rows of a single class"""
    slow: bool = False
    """run last, and for half as many passes where rows are dense: a round is 10 times all rows, one by one"""


METHODS = {
    "common directions": Method("common_directions", {}, 1, split=False),
    "FADL adaptive": Method("fadl", {"approximation": "adaptive"}, 1),
    "FADL quadratic, k̂ = 10": Method("fadl", {"inner_iterations": 10}, 2),
    "FADL quadratic, k̂ = 20": Method("fadl", {"inner_iterations": 20}, 2),
    "FADL quadratic, k̂ = 50": Method("fadl", {"inner_iterations": 50}, 2),
    "FADL hybrid, k̂ = 10": Method("fadl", {"approximation": "hybrid"}, 2),
    "FADL nonlinear, k̂ = 10": Method("fadl", {"approximation": "nonlinear"}, 2),
    "FADL linear, SVRG": Method(
        "fadl", {"approximation": "linear", "inner_solver": "svrg", "inner_iterations": 2}, 2
    ),
    "TRON": Method("tron", {}, 2, split=False),
    "TRON, preconditioned": Method("tron", {"preconditioner": "diagonal"}, 3, split=False),
    "L-BFGS, 10 pairs": Method("lbfgs", {}, 1, split=False),
    "L-BFGS, 40 pairs": Method("lbfgs", {"memory": 40}, 1, split=False),
    "CoCoA+, 10 local passes": Method("cocoa", {}, 1, slow=True),
    "FADL adaptive, rows sorted by label": Method("fadl", {"approximation": "adaptive"}, 1, by_label=True),
}


class Problem(NamedTuple):
    """One of the eight."""

    data: str
    kind: str
    strength: str

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.data}-{self.kind}-{self.strength}"

    @property
    def config(self) -> Path:
        """Its data."""
        return HERE / f"{self.data}.toml"

    def settings(self) -> dict[str, Any]:
        """What the study sets in it."""
        return {"problem.kind": self.kind, "problem.regularisation": float(self.strength)}


PROBLEMS = [
    Problem(data, kind, strength)
    for data in ("text", "fashion")
    for kind in ("logistic", "squared_hinge")
    for strength in ("1e-4", "1e-6")
]


def main() -> None:
    """The command."""
    asked = arguments("fadl", __doc__, "problem", [problem.name for problem in PROBLEMS])
    study = Study("fadl")
    try:
        if not asked.table_only:
            subprocess.run([ROOT / "tools/text_data", ROOT / "runs/text/words.h5"], check=True)
            for slow in (False, True):
                for problem in PROBLEMS:
                    if problem.name in asked.chosen:
                        every = cases(study, problem).items()
                        study.run([case for (line, _), case in every if METHODS[line].slow is slow])
    finally:  # also the results so far of a study that was stopped
        (HERE / "RESULTS.md").write_text("\n\n".join(sections(study)) + "\n", encoding="utf-8")
        for data in ("text", "fashion"):
            draw(study, data)


def best(study: Study, problem: Problem) -> float:
    """f*, found once and kept beside the runs."""
    known = optima(study)
    if problem.name not in known:
        keys = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in problem.settings().items()]
        known[problem.name] = optimum(load(problem.config, [*keys, "run.workers=1"]))
        study.directory.mkdir(parents=True, exist_ok=True)
        (study.directory / OPTIMA).write_text(json.dumps(known, indent=1))
    return float(known[problem.name])


def optima(study: Study) -> dict[str, float]:
    """Those that were found so far."""
    file = study.directory / OPTIMA
    return json.loads(file.read_text()) if file.is_file() else {}


def begun(study: Study) -> list[Problem]:
    """Problems whose f* is known."""
    return [problem for problem in PROBLEMS if problem.name in optima(study)]


def cases(study: Study, problem: Problem) -> dict[tuple[str, int], Case]:
    """(line, N) -> its run; what does not depend on the split is run with 8 workers."""
    optimal = best(study, problem)
    found = {}
    for line, (line_name, method) in enumerate(METHODS.items()):
        settings = problem.settings() | {
            "problem.optimum": optimal,
            "run.method": method.name,
            "run.rounds": most(problem, method) // method.passes,
            "run.target_loss": optimal * (1 + GAPS[-1]),
            **{f"method.{key}": value for key, value in method.settings.items()},
        }
        if method.by_label:
            settings |= {"problem.partition": "classes", "problem.classes_per_worker": 1}
        for N in WORKERS if method.split else WORKERS[:1]:
            if not method.by_label or CLASSES[problem.data] <= N:
                case = Case(f"{problem.name}-{line}-{N}", problem.config, settings | {"run.workers": N})
                found[line_name, N] = case
    return found


def most(problem: Problem, method: Method) -> int:
    """Passes of a run."""
    return MOST_PASSES // 2 if method.slow and problem.data == "fashion" else MOST_PASSES


def sections(study: Study) -> list[str]:
    """The text of RESULTS.md."""
    text = [f"{HEAD}\n\n{textwrap.fill(f'Machine: {study.where()}', 120)}"]
    for problem in begun(study):
        every = cases(study, problem)
        rows = [[line, *(cell(study, every.get((line, N))) for N in WORKERS)] for line in METHODS]
        head = ["", *(f"N = {N}" for N in WORKERS), "bytes", "small sums"]
        rows = [[*row, *beside(study, every.get((row[0], WORKERS[0])))] for row in rows]
        about = textwrap.fill(f"f* = {best(study, problem)!r}. {study.about(list(every.values()))}", 120)
        text.append(f"## {problem.name}\n\n{about}\n\n{table(head, rows)}")
    return text


def draw(study: Study, data: str) -> None:
    """DATA.svg: the gap against passes, a panel for each problem and N."""
    rows = []
    for problem in begun(study):
        if problem.data == data:
            every = cases(study, problem)
            rows.append([(f"{problem.name}, N = {N}", series(study, every, N)) for N in WORKERS])
    if rows:
        curves(HERE / f"{data}.svg", rows, "passes", "f/f* − 1", GAPS[-1] / 10)


def series(
    study: Study, every: dict[tuple[str, int], Case], N: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Line -> passes and gaps of its run with N workers, or of its only one."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for line in METHODS:
        case = every.get((line, N)) or every.get((line, WORKERS[0]))
        if case is not None and study.data(case) is not None:
            found[line] = study.series(case, "passes"), study.series(case, "relative_gap")
    return found


def cell(study: Study, case: Case | None) -> str:
    """Passes to the two gaps."""
    if case is None:
        return ""
    return ", ".join(shown(study, case, gap) for gap in GAPS)


def shown(study: Study, case: Case, gap: float) -> str:
    """Passes to a gap; how far it came where it did not get there."""
    gaps, passes = study.series(case, "relative_gap"), study.series(case, "passes")
    at = reached(gaps, passes, gap)
    if not gaps:
        return "–"
    if at is not None:
        return f"{passes[at]:g}"
    return f"> {min(passes[-1], MOST_PASSES):g}"


def reached(gaps: list[float], passes: list[float], gap: float) -> int | None:
    """The first record with such a gap, at most 200 passes after the start."""
    pairs = enumerate(zip(gaps, passes, strict=True))
    return next((at for at, (now, spent) in pairs if now <= gap and spent <= MOST_PASSES), None)


def beside(study: Study, case: Case | None) -> list[str]:
    """What sums handed over in bytes of the passes, and calls of small sums, until the first gap."""
    data = None if case is None else study.data(case)
    if case is None or data is None:
        return ["–", "–"]
    passes = study.series(case, "passes")
    at = reached(study.series(case, "relative_gap"), passes, GAPS[0])
    at = len(passes) - 1 if at is None else at
    ports = data["ports"].dataset
    payload, calls = (ports[name].sel(port="reduce.scalars").values[at] for name in ("payload", "calls"))
    vectors = passes[at] * 8 * int(data.attrs["dim"])
    return [f"{1 + payload / vectors:.2f}" if vectors else "–", f"{calls:g}"]


if __name__ == "__main__":
    main()
