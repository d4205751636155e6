"""`tools/bench comm`: the Reducer against the bare mpi4py call on a NumPy buffer, alternating in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from mpi4py import MPI

from hpcopt.comm.reduce.mpi_reducer import MPIReducer
from hpcopt.comm.staging import Staging
from hpcopt.ground.placement import Placement
from hpcopt.math.flat import buffer
from tools.benches.common import Call

REPEATS = 21


def once(comm: MPI.Comm, call: Callable[[], object], count: int) -> float:
    """Seconds per call of the slowest rank."""
    comm.Barrier()
    start = time.perf_counter()
    for _ in range(count):
        call()
    return float(comm.allreduce(time.perf_counter() - start, MPI.MAX)) / count


def compare(comm: MPI.Comm, nbytes: int, count: int) -> tuple[list[float], list[float]]:
    """Seconds per call, bare and through the port, in alternating blocks of ``count`` calls."""
    tensor = buffer((nbytes // 4,), like=torch.empty(0)).zero_()
    placement = Placement.even(comm.size, comm.size, comm.rank)
    reducer = MPIReducer(comm, placement, Staging(torch.device("cpu")), tensor)
    array = np.zeros(nbytes // 4, dtype=np.float32)
    calls: tuple[Call, Call] = (
        lambda: comm.Allreduce(MPI.IN_PLACE, array),
        lambda: reducer.total(tensor),
    )
    for call in calls:
        once(comm, call, count)
    bare, port = list[float](), list[float]()
    for repeat in range(REPEATS):
        turns = [(bare, calls[0]), (port, calls[1])]
        for times, call in turns if repeat % 2 else reversed(turns):  # who goes first takes turns too
            times.append(once(comm, call, count))
    reducer.free()
    return bare, port


def main() -> None:
    """Prints a line per size: medians, their spread, and the median of the paired ratios."""
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    if comm.rank == 0:
        print(f"{comm.size} ranks, {REPEATS} repeats, seconds of the slowest rank; float32")
    for nbytes, count in ((1024, 2000), (64 << 10, 500), (4 << 20, 30), (44 << 20, 4)):
        bare, port = compare(comm, nbytes, count)
        ratios = [p / b for b, p in zip(bare, port, strict=True)]
        extra = [p - b for b, p in zip(bare, port, strict=True)]
        if comm.rank == 0:
            print(
                f"{nbytes:>9} B  bare {statistics.median(bare) * 1e6:9.1f} µs  "
                f"port {statistics.median(port) * 1e6:9.1f} µs  "
                f"ratio {statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]  "
                f"extra {statistics.median(extra) * 1e6:6.2f} µs"
            )


if __name__ == "__main__":
    main()
