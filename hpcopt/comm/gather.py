"""Pieces of every rank to every rank, whatever their sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

# MPI libraries still meet limits of 32-bit counts inside; 1 GiB pieces stay clear of them
MAX_MESSAGE = 1 << 30


def gather_rows(comm: MPI.Comm, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """All workers' rows in the order of the workers, (N, k), from the (n, k) of each rank. Collective."""
    counts = comm.allgather(len(rows))
    width = rows.shape[1]
    everything = np.empty((sum(counts), width))
    comm.Allgatherv(np.ascontiguousarray(rows), [everything, [count * width for count in counts]])
    return everything


def allgather(comm: MPI.Comm, piece: Any, whole: Any, counts: list[int]) -> None:
    """Puts the ranks' pieces one after the other into ``whole``. Collective.

    Args:
        comm: all ranks.
        piece: this rank's, (counts[rank],), contiguous, as `Staging.out` gives it.
        whole: (Σ counts,), as `Staging.landing` gives it.
        counts: of all ranks.
    """
    step = MAX_MESSAGE // piece.dtype.itemsize
    if sum(counts) <= step:
        comm.Allgatherv(piece, [whole, counts])
        return
    end = 0
    for rank, count in enumerate(counts):
        start, end = end, end + count
        if rank == comm.rank:
            whole[start:end] = piece
        for at in range(start, end, step):
            comm.Bcast(whole[at : min(at + step, end)], root=rank)


def in_pieces(post: Any, buffer: Any, rank: int, tag: int = 0, limit: int | None = None) -> list[Any]:
    """Posts Isend or Irecv, or makes Send_init or Recv_init, of a contiguous buffer in pieces. Local.

    Args:
        post: the communicator's method.
        buffer: (k,).
        rank, tag: where to or where from.
        limit: bytes of a piece; never more than every MPI can carry.
    """
    step = max(1, min(MAX_MESSAGE, limit or MAX_MESSAGE) // buffer.dtype.itemsize)
    return [post(buffer[at : at + step], rank, tag) for at in range(0, buffer.shape[0], step)]
