"""What a rank without workers does: it computes what it is asked for by mail, until it is told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from mpi4py import MPI
from torch import Tensor

from hpcopt.comm.beside.route import LOOK_SECONDS, STOP, Route

Spent = Callable[[], list[float]]
"""what this rank has spent until now: samples, bytes, bytes of workers, payload and passes"""


class Stopped(Exception):
    """The run is over: nobody wants the answer that is being computed. The same on all ranks beside."""


class Service:
    """Serves requests, one after the other.

    All ranks beside compute the same ones: on every link a request comes before what ends the work, and a
    rank ends only once that has come on all of its links.

    Args:
        route: to those who ask.
        comm: the ranks beside.
        spent: see `Spent`.
        beat: is told what this rank does.
    """

    def __init__(self, route: Route, comm: MPI.Comm, spent: Spent, beat: Callable[[str], None]) -> None:
        self._route, self._comm, self._spent, self._beat = route, comm, spent, beat
        self._parts: dict[int, Tensor] = {}
        self._number = 0
        self._stops: set[int] = set()

    def serve(self) -> None:
        """Returns when all is over, the mailbox freed. Collective, with `ByMail.free`."""
        while True:
            self._look()
            if len(self._parts) == len(self._route.meets):
                try:
                    self._compute()
                except Stopped:
                    continue
            elif self._over():
                break
            else:
                self._beat("the wait for a request")
                time.sleep(LOOK_SECONDS)
        self._beat("the end of the run")
        self._route.mailbox.free()

    def _over(self) -> bool:
        return len(self._stops) == len(self._route.meets)

    def _look(self) -> None:
        for mail in self._route.mailbox.collect():
            if mail.stamp == STOP:
                self._stops.add(mail.origin)
            else:
                self._number = mail.stamp
                self._parts[mail.origin] = self._route.taken(mail.vector, self._route.task.rows, False)[0]

    def _compute(self) -> None:
        start, before = time.perf_counter(), self._spent()
        answer = self._route.task.compute(self._request(), self._number, self._going)
        costs = [now - then for now, then in zip(self._spent(), before, strict=True)]
        costs.append(time.perf_counter() - start)
        told = torch.tensor(costs, dtype=torch.float64)
        for rank, part in self._route.meets.items():
            self._route.put(rank, answer.columns[part].T, self._number, torch.cat([answer.numbers, told]))
            told = torch.zeros_like(told)  # the first one counts it

    def _request(self) -> Tensor:
        parts, meets = self._parts, self._route.meets
        first = next(iter(parts.values()))
        request = first.new_empty(len(first), sum(part.shape[1] for part in parts.values()))
        for rank, part in parts.items():
            request[:, meets[rank]] = part
        parts.clear()
        return request

    def _going(self) -> None:
        """Before each part of the work: there is progress, and somebody wants it. Collective."""
        self._beat(f"what was asked for {self._number + 1}")
        self._look()
        if self._comm.allreduce(self._over(), MPI.LOR):
            raise Stopped
