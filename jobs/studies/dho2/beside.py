"""How many ranks to give to curvature: seconds to a loss against C, from parts measured on one core.

    python -m jobs.studies.dho2.beside [PROBLEM] [--rounds 1000] [--lr 0.03]

What is measured: a round's gradients, the rest of a step with eigenpairs, and a product with the Hessian.
What is simulated: P ranks, on which each of these takes as much less time as there are ranks that share it,
without a network. In line all ranks compute a refresh, and the rounds wait; else C of them do while the
others go on, and its pairs are in use as many rounds later as it takes. How many rounds it then takes to the
loss is no model: each lateness is run (`hpcopt.simulate`).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

import hpcopt
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.config import load
from hpcopt.problems.base import Draw, Recipe, Share
from jobs.studies.markdown import table

HERE = Path(__file__).resolve().parent

RANKS = (4, 8, 16, 32, 64)
PARTS = (4, 8)
"""a quarter and an eighth of the ranks compute curvature"""
PAIRS, PRODUCTS, REFRESHES = 10, 40, 8
TARGET = 0.9
"""of the rounds in line: what the loss is then is to be reached"""
REPEATS = 20


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("problem", nargs="?", default="logistic", help="of this folder (default logistic)")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=0.03)
    arguments = parser.parse_args()
    rounds, every = arguments.rounds, max(1, arguments.rounds // REFRESHES)
    config = load(HERE / f"{arguments.problem}.toml")
    recipe = config.problem.recipe()

    def method(**keys: object) -> hpcopt.DHO2:
        base = {"largest": PAIRS, "lanczos_iterations": PRODUCTS, "warmup": rounds // 20}
        return hpcopt.DHO2(**base | {"lr": arguments.lr, "alpha": 0.01, "refresh_every": every} | keys)

    @cache
    def losses(late: int) -> list[float]:
        keys = {"variant": "concurrent", "handover_rounds": late, "refresh_every": max(every, late)}
        tree = hpcopt.simulate(
            method(**keys if late else {}), recipe, rounds, dtype="float32", evaluate_every=rounds // 100
        )
        return [float(loss) for loss in tree["metrics"]["loss"]]

    in_line = losses(0)
    target = in_line[round(TARGET * (len(in_line) - 1))]
    gradients, rest, product = measured(method(warmup=0, refresh_every=10**9), recipe)
    print(
        f"{arguments.problem}: {1e3 * gradients:.2f} ms for the gradients of a round, {1e3 * rest:.2f} for "
        f"the rest of it, {1e3 * product:.2f} for a product, {PRODUCTS} of these every {every} rounds; to a "
        f"loss of {target:.4g}"
    )
    rows = []
    for ranks in RANKS:
        for beside in (0, *(ranks // part for part in PARTS if ranks >= part)):
            a_round = (gradients + rest) / (ranks - beside)
            refresh = PRODUCTS * product / (beside or ranks)
            late = math.ceil(refresh / a_round) if beside else 0
            made = reached(losses(late), target) * rounds / (len(in_line) - 1)
            waits = 0 if beside else math.ceil((made - rounds // 20) / every) * refresh
            rows.append((ranks, beside, late, made, made * a_round + waits))
    best = {ranks: seconds for ranks, beside, _, _, seconds in rows if not beside}
    cells = [
        [f"{P}", f"{C}" if C else "in line", f"{h}", f"{made:.0f}", f"{s:.3f}", f"{best[P] / s:.2f}"]
        for P, C, h, made, s in rows
    ]
    print(table(["P", "C", "rounds late", "rounds", "s", "times faster than in line"], cells))


def reached(losses: list[float], target: float) -> float:
    """The record, a fraction between two, in which a loss is reached; infinite if it is not."""
    for i, (before, now) in enumerate(pairwise(losses)):
        if now <= target:
            part = math.log(before / target) / math.log(before / now) if before > target else 0.0
            return i + part
    return math.inf


def measured(method: hpcopt.DHO2, recipe: Recipe) -> tuple[float, float, float]:
    """Seconds of a round's gradients, of the rest of it, and of a product, all workers on this core."""
    N = recipe.workers
    problem = recipe.bind(Share(range(N), N, seed=0, dtype=torch.float32))
    state = method.start(problem, LocalPorts(N, problem.initial()))
    method.step(state)
    v, out = torch.ones(problem.dim), torch.empty(problem.dim)
    gradients = seconds(lambda: problem.total_gradient(state.x, Draw(1), out=out))
    step = seconds(lambda: method.step(state))
    product = seconds(lambda: problem.total_hvp(state.x, v, Draw(0)))
    return gradients, max(0.0, step - gradients), product


def seconds(call: Callable[[], object]) -> float:
    """The median time of a call."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[REPEATS // 2]


if __name__ == "__main__":
    main()
