"""How long vectors are cut, and pieces of every rank to every rank, whatever their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

# MPI libraries still meet limits of 32-bit counts inside; 1 GiB pieces stay clear of them
MAX_MESSAGE = 1 << 30


def cuts(size: int, step: int) -> list[slice]:
    """A vector's pieces of at most ``step`` entries.

    >>> cuts(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(at, min(at + step, size)) for at in range(0, size, step)]


def steps(counts: Sequence[int], step: int) -> list[list[slice]]:
    """The same of a vector that lies in parts: ``step`` entries in all, as many of each part; one at least.

    >>> steps([3, 2], 2)[1]
    [slice(1, 2, None), slice(4, 5, None)]
    """
    longest = max(counts)
    width = longest if sum(counts) <= step else max(1, step // len(counts))
    starts = [0, *accumulate(counts)]
    return [
        [slice(a + min(cut.start, n), a + min(cut.stop, n)) for a, n in zip(starts, counts, strict=False)]
        for cut in cuts(longest, width or 1) or [slice(0, 0)]
    ]


def gather_rows(comm: MPI.Comm, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """All workers' rows in the order of the workers, (N, k), from the (n, k) of each rank. Collective."""
    counts = comm.allgather(len(rows))
    width = rows.shape[1]
    everything = np.empty((sum(counts), width))
    comm.Allgatherv(np.ascontiguousarray(rows), [everything, [count * width for count in counts]])
    return everything


def allgather(comm: MPI.Comm, piece: Any, whole: Any, counts: Sequence[int]) -> None:
    """Puts the ranks' pieces one after the other into ``whole``. Collective.

    Args:
        comm: all ranks.
        piece: this rank's, (counts[rank],), contiguous, a wire.
        whole: (Σ counts,), a wire.
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
        for cut in cuts(count, step):
            comm.Bcast(whole[start + cut.start : start + cut.stop], root=rank)


def in_pieces(post: Any, buffer: Any, rank: int, tag: int = 0, limit: int | None = None) -> list[Any]:
    """Posts Isend or Irecv, or makes Send_init or Recv_init, of a contiguous buffer in pieces. Local.

    Args:
        post: the communicator's method.
        buffer: (k,).
        rank, tag: where to or where from.
        limit: bytes of a piece; never more than every MPI can carry.
    """
    step = max(1, min(MAX_MESSAGE, limit or MAX_MESSAGE) // buffer.dtype.itemsize)
    return [post(buffer[cut], rank, tag) for cut in cuts(buffer.shape[0], step)]
