"""Fixtures for tests that run under mpirun; every test body runs on all ranks at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from mpi4py import MPI

torch.set_num_threads(1)


@pytest.fixture
def comm() -> Iterator[MPI.Comm]:
    """All ranks, in a communicator of the test's own."""
    own = MPI.COMM_WORLD.Dup()
    yield own
    own.Free()


@contextmanager
def first_ranks(comm: MPI.Comm, count: int) -> Iterator[MPI.Comm | None]:
    """A communicator of the first ``count`` ranks; None on the others, which wait at the end."""
    sub = comm.Split(0 if comm.rank < count else MPI.UNDEFINED, comm.rank)
    try:
        yield None if sub == MPI.COMM_NULL else sub
    finally:
        if sub != MPI.COMM_NULL:
            sub.Free()
        _wait(comm)


def _wait(comm: MPI.Comm) -> None:
    """A barrier that leaves the cores to those who are still at work."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.002)
