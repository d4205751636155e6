"""What sums of sparse vectors cost on these ranks, measured once at the start of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from mpi4py import MPI

from hpcopt.comm.sparse.costs import Costs
from hpcopt.comm.timing import seconds
from hpcopt.math.topk import largest

if TYPE_CHECKING:
    from torch import Tensor

    from hpcopt.comm.reduce.mpi_reducer import MPIReducer

PIECE_BYTES, PIECES_BYTES = 2 << 20, 64 << 20
"""of each rank and of all ranks, at most, in the allgather that the bandwidth is measured with"""
MEASURED = 1 << 20
"""entries of a vector that dense sums are timed with; a longer one takes proportionally longer where that is
slow, and is timed as it is where that is fast and caches matter"""
FAST = 0.02
"""seconds"""


def measure(comm: MPI.Comm, reducer: MPIReducer, like: Tensor) -> Costs:
    """What sums of sparse vectors will cost here, the same on every rank. Collective.

    Args:
        comm: all ranks.
        reducer: for dense sums.
        like: a vector (d,) of the dtype and on the device of the values.
    """
    x = torch.linspace(-1, 1, len(like), dtype=like.dtype, device=like.device)[None]
    select = seconds(comm, lambda: largest(x, max(1, len(like) // 1000))) / len(like)
    if comm.size == 1:  # nothing travels
        return Costs(1, latency=0.0, bandwidth=1e12, dense=0.0, select=select)

    def dense(size: int) -> float:
        vector = reducer.contribution(size).take()
        return seconds(comm, lambda: reducer.total(vector)) / size

    size = min(len(like), MEASURED)
    per_entry = dense(size)
    if size < len(like) and per_entry * size < FAST:
        per_entry = dense(len(like))
    length = min(PIECE_BYTES, max(1, PIECES_BYTES // comm.size))
    piece, all_pieces = np.zeros(length, np.uint8), np.zeros(length * comm.size, np.uint8)
    one, ones = np.zeros(1), np.zeros(comm.size)
    latency = seconds(comm, lambda: comm.Allgather(one, ones))
    large = seconds(comm, lambda: comm.Allgather(piece, all_pieces))
    return Costs(
        comm.size,
        latency=latency,
        bandwidth=length * (comm.size - 1) / max(large - latency, 1e-9),
        dense=per_entry,
        select=select,
    )
