"""Which way of doing something is fastest on the slowest rank, by timing it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from mpi4py import MPI

from hpcopt.comm.ports import Way

REPEATS = 3
PATIENCE = 1.0
"""seconds after which nothing is repeated: differences are plain then"""


def fastest(comm: MPI.Comm, ways: Mapping[str, Way | None], remembered: str) -> str:
    """The name of the fastest way that is possible on all ranks, the same on every rank. Collective.

    Args:
        comm: all ranks.
        ways: see `Ports.fastest`.
        remembered: which it is, unless it is not possible on these ranks.
    """
    possible = {name: way for name, way in ways.items() if comm.allreduce(way is not None, MPI.LAND) and way}
    if remembered in possible:
        return remembered
    if len(possible) == 1:
        return next(iter(possible))
    times = {name: seconds(comm, way) for name, way in possible.items()}
    return min(times, key=lambda name: times[name])


def seconds(comm: MPI.Comm, call: Callable[[], object]) -> float:
    """The median time of the slowest rank, after a first call that opens connections, if that is not slow."""
    times = list[float]()
    while len(times) <= REPEATS and sum(times) < PATIENCE:
        comm.Barrier()
        start = time.perf_counter()
        call()
        times.append(comm.allreduce(time.perf_counter() - start, MPI.MAX))
    return statistics.median(times[1:] or times)
