"""Which way of summing is fastest here: asked for, remembered, or measured at the start of a run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from mpi4py import MPI

from hpcopt.comm.ports import Way
from hpcopt.comm.ring import Ring
from hpcopt.comm.sparse_plans import Costs
from hpcopt.math.topk import largest

if TYPE_CHECKING:
    from torch import Tensor

    from hpcopt.comm.reducer import MPIReducer

Plan = Literal["mpi", "ring", "ordered"]
REPEATS = 3
PIECE_BYTES, PIECES_BYTES = 2 << 20, 64 << 20
"""of each rank and of all ranks, at most, in the allgather that the bandwidth is measured with"""
MEASURED = 1 << 20
"""entries of a vector that dense sums are timed with; a longer one takes proportionally longer where that is
slow, and is timed as it is where that is fast and caches matter"""
FAST = 0.02
"""seconds"""


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


def measure(comm: MPI.Comm, reducer: MPIReducer, like: Tensor) -> Costs:
    """What sums of sparse vectors will cost here, the same on every rank. Collective.

    Args:
        comm: all ranks.
        reducer: for dense sums.
        like: a vector (d,) of the dtype and on the device of the values.
    """
    x = torch.linspace(-1, 1, len(like), dtype=like.dtype, device=like.device)[None]
    select = _seconds(comm, lambda: largest(x, max(1, len(like) // 1000))) / len(like)
    if comm.size == 1:  # nothing travels
        return Costs(1, latency=0.0, bandwidth=1e12, dense=0.0, select=select)

    def dense(size: int) -> float:
        vector = reducer.contribution(size).take()
        return _seconds(comm, lambda: reducer.total(vector)) / size

    size = min(len(like), MEASURED)
    seconds = dense(size)
    if size < len(like) and seconds * size < FAST:
        seconds = dense(len(like))
    length = min(PIECE_BYTES, max(1, PIECES_BYTES // comm.size))
    piece, all_pieces = np.zeros(length, np.uint8), np.zeros(length * comm.size, np.uint8)
    one, ones = np.zeros(1), np.zeros(comm.size)
    latency = _seconds(comm, lambda: comm.Allgather(one, ones))
    large = _seconds(comm, lambda: comm.Allgather(piece, all_pieces))
    return Costs(
        comm.size,
        latency=latency,
        bandwidth=length * (comm.size - 1) / max(large - latency, 1e-9),
        dense=seconds,
        select=select,
    )


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
    seconds = {name: _seconds(comm, way) for name, way in possible.items()}
    return min(seconds, key=lambda name: seconds[name])


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
