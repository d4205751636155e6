"""Stopping together: a signal or a limit on any rank becomes one agreed round on all, without barriers."""

from __future__ import annotations

import time

import numpy as np
from mpi4py import MPI

from hpcopt.control import signals
from hpcopt.control.wishes import Stop

# how often the ranks look at each other's wishes [s]; a signal takes effect within two of these
WINDOW_SECONDS = 0.5
MAX_WINDOW = 64


class StopAgreement:
    """One nonblocking reduction in flight at all times, or one at the end of every round that is long.

    All ranks post their wishes at the end of the same round and read the result at the end of the same later
    round, so they all stop there. The number of rounds between follows from the slowest rank's speed, which
    travels in the same reduction. Where a round takes longer than `WINDOW_SECONDS` they wait for the result
    at once: a wish takes effect at the end of the round in which it came. Collective over ``comm``
    (duplicated) at agreed rounds only.

    Args:
        comm: the ranks.
        round: that is made next.
        stop_signal: see `hpcopt.control.signals.catch`.
    """

    def __init__(self, comm: MPI.Comm, round: int, stop_signal: str = signals.DEFAULT) -> None:
        self._catching = signals.catch(stop_signal)
        self._comm = comm.Dup()
        self._wish = Stop.NO
        self._send, self._result = np.zeros(2), np.zeros(2)
        self._request: MPI.Request | None = None
        self._due, self._posted, self._since = round, round, time.perf_counter()

    def ask(self, wish: Stop) -> None:
        """Asks all ranks to stop. Local."""
        self._wish = max(self._wish, wish)

    def wish(self) -> Stop:
        """What this rank wishes. Local; any thread may ask."""
        return Stop.SIGNAL if signals.received() else self._wish

    def poll(self, round: int) -> Stop:
        """To be called at the end of every round by every rank; the same answer everywhere."""
        if round < self._due:
            return Stop.NO
        window = 1
        if self._request is not None:
            self._request.Wait()
            self._request = None
            if self._result[0] > 0:
                return Stop(int(self._result[0]))
        slowest = self._result[1]  # of a round, as all know it [s]
        if slowest > 0:
            window = int(np.clip(WINDOW_SECONDS / slowest, 1, MAX_WINDOW))
        now = time.perf_counter()
        self._send[:] = self.wish(), (now - self._since) / max(round - self._posted, 1)
        self._due, self._posted, self._since = round + window, round, now
        if slowest > WINDOW_SECONDS:
            self._comm.Allreduce(self._send, self._result, MPI.MAX)
            return Stop(int(self._result[0]))
        self._request = self._comm.Iallreduce(self._send, self._result, MPI.MAX)
        return Stop.NO

    def close(self) -> None:
        """Completes what is in flight and gives the signals back. Collective."""
        if self._request is not None:
            self._request.Wait()
        if self._catching:
            signals.release()
        self._comm.Free()
