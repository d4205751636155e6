"""How often RegTop-k decides otherwise than Top-k would, and why: measured in one process, without MPI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcopt.config import load
from jobs.studies.markdown import table
from jobs.studies.regtopk.analytic import linear_case
from jobs.studies.regtopk.comparison import final_case
from jobs.studies.regtopk.fashion import DENSITIES, variants
from jobs.studies.study import Case, Study

if TYPE_CHECKING:
    from torch import Tensor

ROUNDS, EVERY = 200, 10
"""rounds that are watched; every so many, the workers' gradients are compared with each other"""
LINEAR_DENSITY, SEED = 0.55, 1
TEXT = """r = |g_prev / (ω â)| on what a worker sent last round: 1 where no other worker sent the entry, small
where the workers' entries cancelled. Percentages: of all r, those that are 1 and those below ½; of the k
entries, those sent last round that plain Top-k would choose again from the same error memories, and those
where RegTop-k's choice differs from plain Top-k's. Cosines between two workers' gradients as the method sees
them: 10 / 50 / 90 % over pairs and rounds."""


def cases(study: Study) -> dict[str, Case]:
    """Label -> the run of the study whose first rounds are watched; those known so far."""
    found: dict[str, Case | None] = {
        f"linear regression {LINEAR_DENSITY}": linear_case("RegTop-k", LINEAR_DENSITY, SEED)
    }
    for density in DENSITIES:
        variant = next(v for v in variants() if v.name == f"regtopk-{density}")
        found[f"Fashion-MNIST {density}"] = final_case(study, variant, SEED)
    return {label: case for label, case in found.items() if case is not None}


def measure(study: Study) -> None:
    """Makes what is missing."""
    for label, case in cases(study).items():
        file = _file(study, case)
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(_watch(case)), encoding="utf-8")
            partial.replace(file)
            print(f"why: {label}", flush=True)


def section(study: Study) -> str:
    """What was seen."""
    rows = []
    for label, case in cases(study).items():
        file = _file(study, case)
        if file.is_file():
            seen = json.loads(file.read_text(encoding="utf-8"))
            low, middle, high = seen["quantiles"]
            shares = [f"{100 * seen[key]:.1f}" for key in ("alone", "cancelled", "again", "changed")]
            rows.append(
                [label, f"{low:.3g} / {middle:.3g} / {high:.3g}", *shares, *_cosines(seen["cosines"])]
            )
    return "\n\n".join(
        [
            f"## Why: the first {ROUNDS} rounds of RegTop-k (μ = 4, seed {SEED}), looked at from inside",
            TEXT,
            table(
                [
                    "problem, k/d",
                    "r: 10 / 50 / 90 %",
                    "r = 1, %",
                    "r < ½, %",
                    "again, %",
                    "changed, %",
                    "cosines",
                ],
                rows,
            ),
        ]
    )


def _cosines(quantiles: list[float]) -> list[str]:
    return [" / ".join(f"{value:.2f}" for value in quantiles)]


def _file(study: Study, case: Case) -> Path:
    return study.directory / "why" / f"{case.name.replace('/', '-')}.json"


def _watch(case: Case) -> dict[str, Any]:
    """Runs the case's method and notes, per round, its ratios and choices."""
    import torch

    import hpcopt
    from hpcopt.math.topk import UNSENT
    from hpcopt.methods.parts.error_feedback import last_sent
    from hpcopt.methods.regtopk import RegTopKState

    class Watched(hpcopt.RegTopK):
        """Notes before it steps, and before it chooses."""

        def step(self, state: RegTopKState) -> hpcopt.StepInfo:
            if state.round % EVERY == 0:
                gradients = self._feedback._problem.gradients(state.x, hpcopt.Draw(state.round))
                unit = torch.nn.functional.normalize(gradients, dim=1)
                cosines.append((unit @ unit.T).numpy()[np.triu_indices(len(unit), 1)])
            return super().step(state)

        def _choose(self, a: Tensor, state: RegTopKState) -> Tensor:
            plain, chosen = self._largest(a, state.round), super()._choose(a, state)
            last = slice(0, last_sent(state)[0])
            s, sent, back = state.s[:, last], state.sent[:, last], state.back[:, last]
            if s.shape[1]:
                ratios.append(torch.where(sent == 0, UNSENT, (back / sent).abs()).flatten().numpy())
                changed.append(1 - _shared(plain, chosen))
                again.append(_shared(plain, s))
            return chosen

    config = load(case.config, case.overrides)
    ratios, changed, again, cosines = list[Any](), list[float](), list[float](), list[Any]()
    keys: dict[str, Any] = {
        "seed": config.run.seed,
        "dtype": config.run.dtype,
        "device": "cpu",
        "evaluate_every": ROUNDS,
    }
    settings: Any = config.method
    hpcopt.simulate(Watched(settings), config.problem.recipe(), ROUNDS, **keys)
    every = np.concatenate(ratios)
    return {
        "quantiles": np.quantile(every, (0.1, 0.5, 0.9)).tolist(),
        "alone": float((every == 1).mean()),
        "cancelled": float((every < 0.5).mean()),
        "changed": float(np.mean(changed)),
        "again": float(np.mean(again)),
        "cosines": np.quantile(np.concatenate(cosines), (0.1, 0.5, 0.9)).tolist(),
    }


def _shared(first: Tensor, second: Tensor) -> float:
    """How many of the entries in each row of ``first`` are in that of ``second`` too, as a fraction."""
    rows = zip(first.numpy(), second.numpy(), strict=True)
    return float(np.mean([np.isin(a, b, assume_unique=True).mean() for a, b in rows]))
