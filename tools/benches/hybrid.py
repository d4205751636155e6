"""`tools/bench lanczos`: rounds of dho2 between refreshes against rounds of its base, allreduce_sgd, in turn.

An mlp of a million parameters on Fashion-MNIST, mini-batches of 64 or 256 rows on each of 4 workers,
float32, k = 16 eigenpairs; heavy ball and Adam. The first round of dho2, not timed, has the only refresh.
Beside them, in turn too: the workers' gradients without any sum, and two bare passes over this rank's slice
of V.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from typing import Any

import torch
from mpi4py import MPI

import hpcopt
from hpcopt.config.problems import NetworkTable
from hpcopt.ground.placement import Placement
from hpcopt.methods.parts.curvature import along
from hpcopt.problems.base import Draw, Problem, Share
from tools.benches.common import Call, Steps, in_turn, ratios, spread

WORKERS, BATCHES, HIDDEN = 4, (64, 256), [1000, 210]
PAIRS, PRODUCTS = 16, 24
LR = 1e-3
REPEATS, ROUNDS = 9, 4
BASES: dict[str, dict[str, Any]] = {"momentum": {"momentum": 0.9}, "adam": {"optimizer": "adam"}}
AIM = 1.1


def bind(comm: MPI.Comm, hidden: list[int], batch: int) -> Problem:
    """The workers of this rank."""
    table = NetworkTable(
        workers=WORKERS, dataset="fashion-mnist", model="mlp", hidden=hidden, batch_size=batch
    )
    here = Placement.even(WORKERS, comm.size, comm.rank).here
    return table.recipe().bind(Share(here, WORKERS, seed=0, dtype=torch.float32))


def hybrid(base: str) -> hpcopt.DHO2:
    """With pairs from the first round on; rough ones, for their quality costs no time in a step."""
    keys: dict[str, Any] = {
        "warmup": 0,
        "refresh_every": 10**9,
        "lanczos_iterations": PRODUCTS,
        "alpha": 0.01,
    }
    return hpcopt.DHO2(base=base, lr=LR, largest=PAIRS, **keys)


def rounds(steps: Steps) -> None:
    """Some rounds, so that a short one is measured well."""
    for _ in range(ROUNDS):
        steps.step()


def compare(comm: MPI.Comm, problem: Problem, base: str) -> None:
    """Prints milliseconds of a round, the ratio, and where they go."""
    plain = Steps(comm, hpcopt.AllreduceSGD(lr=LR, **BASES[base]), problem)
    ours = Steps(comm, hybrid(base), problem)
    ours.step()
    V, out = ours.state.V, torch.empty(problem.dim)
    b, m = V.new_ones(PAIRS), V.new_ones(len(V))

    def gradients() -> None:
        for round in range(ROUNDS):
            problem.total_gradient(plain.state.x, Draw(round), out=out)

    def passes() -> None:
        for _ in range(ROUNDS):
            along(V, m)
            m.addmv_(V, b)

    calls: dict[str, Call] = {"base": partial(rounds, plain), "hybrid": partial(rounds, ours)}
    times = in_turn(comm, calls | {"gradients": gradients, "passes over V": passes}, REPEATS)
    if comm.rank == 0:
        print(f"{comm.size} ranks, {base}: hybrid / base {ratios(times['hybrid'], times['base'])}; aim {AIM}")
        whole = statistics.median(times["base"])
        for name, values in times.items():
            each = spread([1000 * seconds / ROUNDS for seconds in values], 2)
            print(f"  {name:14} {each} ms, {statistics.median(values) / whole:.0%} of the base's")
        sys.stdout.flush()
    ours.ports.free()
    plain.ports.free()


def main() -> None:
    """See above; numbers as arguments: other hidden layers."""
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    for batch in BATCHES:
        problem = bind(comm, [int(size) for size in sys.argv[1:]] or HIDDEN, batch)
        if comm.rank == 0:
            print(
                f"d = {problem.dim:,}, {WORKERS} workers with {batch} rows each, k = {PAIRS}, float32, "
                f"medians of {REPEATS} [min, max]"
            )
        for base in BASES:
            compare(comm, problem, base)


if __name__ == "__main__":
    main()
