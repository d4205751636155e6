"""`tools/bench hosts`: sums between rate-limited hosts, whole and in halves: MPI, the ring, torch's gloo."""

from __future__ import annotations

import statistics
import sys

import numpy as np
import torch
import torch.distributed
from mpi4py import MPI

from hpcopt.comm.reduce.mpi_reducer import MPIReducer
from hpcopt.comm.reduce.ring import Ring
from hpcopt.comm.staging import Staging
from hpcopt.config.problems import NetworkTable
from hpcopt.ground.placement import Placement, sizes
from hpcopt.problems.base import Draw, Share
from tools.benches.common import hosts, seconds, start_gloo

ELEMENTS = 11_000_000  # float32: 44 MB
REPEATS = 5


def overlapping(comm: MPI.Comm) -> list[tuple[float, float]]:
    """Seconds of a gradient of resnet18 (11 M parameters, 4 small images) and its sum: plain, overlapped."""
    table = NetworkTable(workers=comm.size, model="resnet18", batch_size=4)
    mine = range(comm.rank, comm.rank + 1)
    share = Share(mine, comm.size, seed=0, dtype=torch.float32)
    problem = table.recipe().bind(share)
    x, placement = problem.initial(), Placement.even(comm.size, comm.size, comm.rank)
    staging = Staging(torch.device("cpu"))
    reducers = [MPIReducer(comm, placement, staging, x, "ring", overlap) for overlap in (False, True)]

    def step(reducer: MPIReducer) -> float:
        return seconds(comm, lambda: reducer.gradient(problem, x, Draw(0)))

    pairs = [(step(reducers[0]), step(reducers[1])) for _ in range(1 + REPEATS)]
    for reducer in reducers:
        reducer.free()
    return pairs[1:]


def main() -> None:
    """Prints medians with spread, and the ring's ratio to the others, taken in turn in one run."""
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    start_gloo(comm)
    ring, array, tensor = Ring(comm), np.ones(ELEMENTS, np.float32), torch.ones(ELEMENTS)
    counts = sizes(ELEMENTS, comm.size)
    piece = np.ones(counts[comm.rank], np.float32)
    calls = {
        ("allreduce", "MPI"): lambda: comm.Allreduce(MPI.IN_PLACE, array),
        ("allreduce", "gloo"): lambda: torch.distributed.all_reduce(tensor),
        ("allreduce", "ring"): lambda: ring.allreduce(array),
        ("reduce-scatter", "MPI"): lambda: comm.Reduce_scatter(array, piece, counts),
        ("reduce-scatter", "ring"): lambda: ring.reduce_scatter(array, piece, counts),
        ("allgather", "MPI"): lambda: comm.Allgatherv(piece, [array, counts]),
        ("allgather", "ring"): lambda: ring.allgather(piece, array, counts),
    }
    times: dict[tuple[str, str], list[float]] = {name: [] for name in calls}
    for repeat in range(1 + REPEATS):
        for name, call in calls.items():
            array[:], tensor[:], piece[:] = 1, 1, comm.rank + 1
            took = seconds(comm, call)
            assert max(array[-1], float(tensor[-1]), piece[-1]) == comm.size
            if repeat:
                times[name].append(took)
    count = hosts(comm)
    ring.free()
    steps = overlapping(comm)
    if comm.rank == 0:
        print(f"{count} hosts, {comm.size} ranks, {' '.join(sys.argv[1:])}, 44 MB, medians of {REPEATS}")
        for (verb, way), values in times.items():
            ratio = statistics.median(a / b for a, b in zip(times[verb, "ring"], values, strict=True))
            print(
                f"  {verb:15} {way:5} {statistics.median(values):7.3f} s  "
                f"[{min(values):.3f}, {max(values):.3f}]  ring / this {ratio:.2f}"
            )
        plain, early = (statistics.median(values) for values in zip(*steps, strict=True))
        ratio = statistics.median(b / a for a, b in steps)
        print(f"  a step of resnet18: {plain:.3f} s; with overlap {early:.3f} s, ratio {ratio:.2f}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
