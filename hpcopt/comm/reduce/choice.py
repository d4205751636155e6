"""How allreduces of long vectors travel here: asked for, remembered, or measured at the start of a run."""

from __future__ import annotations

from typing import Literal

import numpy as np
from mpi4py import MPI

from hpcopt.comm.reduce.ring import Ring
from hpcopt.comm.timing import seconds

Reduction = Literal["mpi", "ring", "ordered"]


def choose(comm: MPI.Comm, wanted: str, remembered: str, size: int, itemsize: int) -> Reduction:
    """The way of allreduces of a vector, the same on every rank. Collective.

    Args:
        comm: all ranks.
        wanted: "auto", or a way by name; a ring that these ranks do not admit becomes "mpi".
        remembered: what an earlier job of the run chose; empty if there was none.
        size, itemsize: of the vector.
    """
    # sums that were ordered because that was asked for are no choice
    way = remembered if wanted == "auto" and remembered not in ("", "ordered") else wanted
    if way == "ordered":
        return "ordered"
    if way == "mpi" or not Ring.admits(comm):  # within one node MPI's shared memory is hard to beat
        return "mpi"
    return "ring" if way == "ring" else _fastest(comm, size, itemsize)


def _fastest(comm: MPI.Comm, size: int, itemsize: int) -> Reduction:
    vector = np.zeros(size, dtype={4: np.float32, 8: np.float64}[itemsize])
    ring = Ring(comm)
    times = {
        "mpi": seconds(comm, lambda: comm.Allreduce(MPI.IN_PLACE, vector)),
        "ring": seconds(comm, lambda: ring.allreduce(vector)),
    }
    ring.free()
    return "ring" if times["ring"] < times["mpi"] else "mpi"
