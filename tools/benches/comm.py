"""`tools/bench comm`: the Reducer against the bare mpi4py call; ways of long sums against a copy and gloo.

All in one run, in turn. Long vectors are summed whole and in pieces, as the Reducer measures at its start,
and as it then does; a copy of the vector is what nobody can be much faster than.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed
from mpi4py import MPI

from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.reduce.mpi_reducer import MPIReducer
from hpcopt.comm.reduce.pieces import WHOLE, Pieces
from hpcopt.comm.staging import Staging
from hpcopt.ground.placement import Placement, sizes
from hpcopt.math.flat import buffer
from tools.benches.common import Call, in_turn, start_gloo

REPEATS = 21
LONG = 11_173_962
"""float32 numbers: a ResNet-18"""
PIECES = {"whole": WHOLE, "256 KiB": 1 << 18, "1 MiB": 1 << 20, "4 MiB": 4 << 20, "8 MiB": 8 << 20}


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


def long_sums(comm: MPI.Comm) -> dict[str, list[float]]:
    """Seconds of a copy of a long vector, and of sums and reduce-scatters of it."""
    like, counts = torch.zeros(0), sizes(LONG, comm.size)
    vector, other = (buffer((LONG,), like).zero_() for _ in range(2))
    piece = buffer((counts[comm.rank],), like)
    wire, landing = vector.numpy(), piece.numpy()
    placement = Placement.even(comm.size, comm.size, comm.rank)
    ports = MPIPorts(comm, placement, Staging(vector.device), vector, "auto", False, {})
    reducer = ports.reducer()
    sums, scatters = (list(ports.chosen["sums"][verb].values())[-1] for verb in ("sum", "scatter"))
    calls: dict[str, Call] = {"a copy": lambda: other.copy_(vector)}
    for name, nbytes in PIECES.items():
        plan = Pieces(comm, nbytes)
        calls[f"sum, {name}"] = lambda plan=plan: plan.allreduce(wire)  # type: ignore[misc]
        calls[f"scatter, {name}"] = lambda plan=plan: plan.reduce_scatter(wire, landing, counts)  # type: ignore[misc]
    calls[f"sum, port: {sums}"] = lambda: reducer.total(vector)
    calls[f"scatter, port: {scatters}"] = lambda: reducer._reduce_scatter(vector)
    calls["sum, gloo"] = lambda: torch.distributed.all_reduce(other)
    times = in_turn(comm, calls, REPEATS)
    reducer.free()
    ports.free()
    return times


def main() -> None:
    """Prints medians and their spread: ratios of pairs, and long sums in milliseconds and copies."""
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    start_gloo(comm)
    if comm.rank == 0:
        print(f"{comm.size} ranks, {REPEATS} repeats, seconds of the slowest rank; float32")
    for nbytes, count in ((1024, 2000), (64 << 10, 500), (4 << 20, 30)):
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
    times = long_sums(comm)
    if comm.rank == 0:
        print(f"{LONG * 4} B: least and median ms, and medians over that of a copy")
        copy = statistics.median(times["a copy"])
        for name, found in sorted(times.items()):
            middle = statistics.median(found)
            print(f"  {name:26} {min(found) * 1e3:7.1f} {middle * 1e3:7.1f}   {middle / copy:5.2f}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
