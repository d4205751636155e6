"""`tools/bench lanczos`: rounds of dho2 while a rank beside computes eigenpairs, against those without that.

On 2 ranks, of which one makes the rounds: an mlp of a million parameters on Fashion-MNIST, mini-batches of 64
rows, float32, k = 16; pairs are taken over once they are there, and asked for every 200 rounds.
Also the seconds of rounds in which a snapshot is handed over and in which pairs are taken over.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from typing import Any

from mpi4py import MPI

from hpcopt.config import from_tables
from hpcopt.control.agree import in_agreement
from hpcopt.control.crew import Crew
from hpcopt.engine.assistance import assist
from hpcopt.engine.build import Built
from hpcopt.engine.job import build
from hpcopt.engine.names import method_of
from tools.benches.common import spread

REFRESHES, PAUSE, REPEATS = 2, 200, 5
AIM = 0.9
TABLES = {
    "run": {"method": "dho2", "workers": 1, "curvature_ranks": 1, "dtype": "float32", "device": "cpu"},
    "method": {
        "variant": "concurrent",
        "handover_rounds": "ready",
        "refresh_every": PAUSE,
        "warmup": 0,
        "largest": 16,
        "lanczos_iterations": 24,
        "lr": 1e-3,
        "alpha": 0.01,
    },
    "problem": {
        "kind": "network",
        "dataset": "fashion-mnist",
        "model": "mlp",
        "hidden": [1000, 210],
        "batch_size": 64,
    },
}


def measure(built: Built) -> dict[str, list[float]]:
    """Seconds of rounds: during a refresh, without one, and those that begin and end one."""
    state: Any = built.state
    times: dict[str, list[float]] = {name: [] for name in ("during", "without", "asks", "takes over")}
    last = int(state.refreshes) + REFRESHES
    while int(state.refreshes) < last:
        before, asked = int(state.refreshes), int(state.asked) >= 0
        start = time.perf_counter()
        built.method.step(state)
        took = time.perf_counter() - start
        state.round += 1
        if int(state.refreshes) > before:
            name = "takes over"
        elif int(state.asked) >= 0:
            name = "during" if asked else "asks"
        else:
            name = "without"
        times[name].append(took)
    return times


def main() -> None:
    """See above."""
    comm = MPI.COMM_WORLD
    config = from_tables(TABLES, "bench")
    recipe, method, crew = config.problem.recipe(), method_of(config), Crew(comm, 1)
    found: list[dict[str, list[float]]] = []

    def rounds() -> None:
        with ExitStack() as opened:
            built = build(opened, crew, config, method, recipe)
            measure(built)  # without pairs in use a round is the base's
            found.extend(measure(built) for _ in range(REPEATS))

    with ExitStack() as opened:
        in_agreement(opened, crew.free)
        if not crew.makes_rounds:
            return assist(crew, config, method, recipe, lambda where: None)
        crew.rounds(rounds)
    rates = [statistics.mean(one["without"]) / statistics.mean(one["during"]) for one in found]
    print(f"rounds a second during a refresh against those without: {spread(rates, 2)}; aim {AIM}")
    for name in found[0]:
        every = [1000 * seconds for one in found for seconds in one[name]]
        middle, mean = statistics.median(every), statistics.mean(every)
        print(f"  {name:10} {middle:.2f} ms (median of {len(every)}), mean {mean:.2f}")
    return None


if __name__ == "__main__":
    main()
