"""Small per-worker numbers, from every rank to every rank."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from hpcopt.comm.blocks import sizes


def gather_rows(comm: MPI.Comm, rows: NDArray[np.float64], workers: int) -> NDArray[np.float64]:
    """All N workers' rows in the order of the workers, (N, k), from the (n, k) of each rank. Collective."""
    width = rows.shape[1]
    counts = [count * width for count in sizes(workers, comm.size)]
    everything = np.empty((workers, width))
    comm.Allgatherv(np.ascontiguousarray(rows), [everything, counts])
    return everything
