"""One small sum over all ranks after the other, while everybody computes: agreement without waiting."""

from __future__ import annotations

import time
from collections import deque

import numpy as np
from mpi4py import MPI

from hpcopt.comm.ports import Agreed

SECONDS = 2e-3
"""the shortest time from one sum's beginning to the next one's"""


class Sums:
    """The k-th sum of all ranks is one reduction; so all ranks get the same ones in the same order.

    A rank takes part in the next one from its first `agree` on; before that only where it is quiet, which
    ends a pause. It makes no difference when: a sum is there once the last rank has begun it.

    Args:
        comm: duplicated. Collective.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm, self._made, self._agrees = comm.Dup(), 0, False
        self._found: deque[Agreed] = deque()
        self._newest, self._begun = Agreed(-1, 0), -SECONDS
        self._mine, self._sum = np.zeros(2, np.int64), np.zeros(2, np.int64)  # made, ranks that are quiet
        self._wish, self._largest = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self._requests: list[MPI.Request] = []

    def agree(self, made: int, goal: int) -> Agreed | None:
        """See `hpcopt.comm.ports.Mailbox`; for the computing thread, no MPI call."""
        self._made, self._agrees = made, True
        while self._found and self._found[0].made < goal and not self._found[0].wish:
            self._found.popleft()
        return self._found[0] if self._found else None

    def turn(self, quiet: bool, wish: int) -> bool:
        """Ends a sum that is there, begins the next; for the thread that makes the MPI calls.

        Args:
            quiet: this rank pauses, and nothing of it is under way.
            wish: of this rank.

        Returns:
            Whether the sum that ended was begun by all ranks when they were quiet. Nobody has begun another.
        """
        if self._requests:
            if not MPI.Request.Testall(self._requests):
                return False
            self._requests = []
            made, quiet_ranks = self._sum.tolist()
            found = Agreed(made, int(self._largest[0]))
            if found != self._newest:  # of several that found the same, every goal takes the first
                self._newest = found
                self._found.append(found)
            if quiet_ranks == self._comm.size:
                return True
        now = time.monotonic()
        if (quiet or self._agrees) and now >= self._begun + SECONDS:
            self._begun, self._mine[:], self._wish[:] = now, (self._made, quiet), wish
            self._requests = [
                self._comm.Iallreduce(self._mine, self._sum, MPI.SUM),
                self._comm.Iallreduce(self._wish, self._largest, MPI.MAX),
            ]
        return False

    def free(self) -> None:
        """Frees the communicator. Collective, after a pause."""
        self._comm.Free()
