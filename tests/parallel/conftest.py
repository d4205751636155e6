"""Fixtures for tests that run under mpirun; every test body runs on all ranks at once."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate

import pytest
import torch
from mpi4py import MPI

torch.set_num_threads(1)

ON_2_OR_4 = pytest.mark.skipif(MPI.COMM_WORLD.size == 3, reason="2 and 4 ranks say it all")


@pytest.fixture
def comm() -> Iterator[MPI.Comm]:
    """All ranks, in a communicator of the test's own."""
    own = MPI.COMM_WORLD.Dup()
    yield own
    own.Free()


@contextmanager
def groups(comm: MPI.Comm, *counts: int) -> Iterator[MPI.Comm | None]:
    """A communicator of this rank's group, at work at the same time as the others, of so many ranks each.

    None on ranks that are in no group; all wait at the end.
    """
    number = bisect_right(list(accumulate(counts)), comm.rank)
    sub = comm.Split(number if number < len(counts) else MPI.UNDEFINED, comm.rank)
    try:
        yield None if sub == MPI.COMM_NULL else sub
    finally:
        if sub != MPI.COMM_NULL:
            sub.Free()
        _wait(comm)


def first_ranks(comm: MPI.Comm, count: int) -> AbstractContextManager[MPI.Comm | None]:
    """A communicator of the first ``count`` ranks; None on the others, which wait at the end."""
    return groups(comm, count)


def _wait(comm: MPI.Comm) -> None:
    """A barrier that leaves the cores to those who are still at work."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.002)
