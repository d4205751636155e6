"""Which way of summing is fastest here: asked for, remembered, or measured at the start of a run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
from mpi4py import MPI

from hpcopt.comm.ring import Ring

Plan = Literal["mpi", "ring", "ordered"]
REPEATS = 3


def choose(comm: MPI.Comm, wanted: str, remembered: str, size: int, itemsize: int) -> Plan:
    """The plan for allreduces of a vector, the same on every rank. Collective.

    Args:
        comm: all ranks.
        wanted: "auto", or a plan by name; a ring that these ranks do not admit becomes "mpi".
        remembered: what an earlier job of the run chose; empty if there was none.
        size, itemsize: of the vector.
    """
    plan = remembered if wanted == "auto" and remembered else wanted
    if plan == "ordered":
        return "ordered"
    if plan == "mpi" or not Ring.admits(comm):  # within one node MPI's shared memory is hard to beat
        return "mpi"
    return "ring" if plan == "ring" else _fastest(comm, size, itemsize)


def _fastest(comm: MPI.Comm, size: int, itemsize: int) -> Plan:
    vector = np.zeros(size, dtype={4: np.float32, 8: np.float64}[itemsize])
    ring = Ring(comm)
    seconds = {
        "mpi": _seconds(comm, lambda: comm.Allreduce(MPI.IN_PLACE, vector)),
        "ring": _seconds(comm, lambda: ring.allreduce(vector)),
    }
    ring.free()
    return "ring" if seconds["ring"] < seconds["mpi"] else "mpi"


def _seconds(comm: MPI.Comm, call: Callable[[], object]) -> float:
    """The median time of the slowest rank, after a first call that opens connections."""
    times = []
    for _ in range(1 + REPEATS):
        comm.Barrier()
        start = time.perf_counter()
        call()
        times.append(comm.allreduce(time.perf_counter() - start, MPI.MAX))
    return statistics.median(times[1:])
