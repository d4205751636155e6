"""A model that every worker owns a slice of, kept up to date by vectors that workers put to each other.

Worker m owns slice m of N, the same on any number of ranks. Who has a gradient puts its slices to their
owners. An owner applies what it finds and puts its newest slice back to those whose gradients it applied, so
a worker's model has slices of different ages. A slice's version is the number of gradients in it; the
staleness of a gradient, slice by slice, how many others were applied since the version that it is of.

There is no server, and nobody waits: a gradient that meets a full link is added to the one that waits there,
an old slice makes room for a newer one.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from hpcopt.comm.ports import Agreed, Ports, Transport
from hpcopt.ground.placement import block
from hpcopt.problems.base import Share

Rate = Callable[[float], float]


class Owners:
    """The slices owned here, and how they are exchanged. Opening and `settle` are collective, nothing else.

    Args:
        ports: of the run.
        share: the workers here.
        x: a vector like the model, (d,).
        bins: of `counts`; the last one has all longer delays.
        transport: what carries the vectors.

    Attributes:
        counts: how many slices of gradients were applied here since the last `settle`, by the worker that they
            are of and their staleness, (N, bins) int64.
    """

    def __init__(self, ports: Ports, share: Share, x: Tensor, bins: int, transport: Transport) -> None:
        self._reduce, self._share = ports.reduce, share
        N, here = share.total, share.workers
        starts = [block(len(x), N, m).start for m in range(N)] + [len(x)]
        self._mine = slice(starts[here.start], starts[here.stop])
        # with fewer parameters than workers some own nothing
        self._slices = {m: slice(*ends) for m, ends in enumerate(pairwise(starts)) if ends[0] < ends[1]}
        self._versions = dict.fromkeys(self._slices, 0)
        there = [(n, m) for n in range(N) for m in self._slices]
        back = [(m, n) for n, m in there]
        self._gradients = ports.mailbox(x[self._slices[0]], there, transport=transport)
        self._newest = ports.mailbox(x[self._slices[0]], back, transport=transport, full="newest")
        self.counts = torch.zeros(N, bins, dtype=torch.int64)

    def put(self, worker: int, gradient: Tensor) -> None:
        """A worker's gradient, (d,), at the model as it is here."""
        for m, part in self._slices.items():
            self._gradients.put(worker, m, gradient[part], self._versions[m])

    def apply(self, x: Tensor, rate: Rate) -> None:
        """x_m ← x_m − η(τ) g for what has arrived for the slices m owned here, in the order of arrival.

        Args:
            x: the model as it is here, (d,).
            rate: η of a staleness; of gradients that were added up on their way, of their mean.
        """
        for mail in self._gradients.collect():
            m, late = mail.to, self._versions[mail.to] - mail.stamps / mail.count
            x[self._slices[m]].add_(mail.vector, alpha=-rate(late))
            self._versions[m] += mail.count
            self.counts[mail.origin, min(round(late), self.counts.shape[1] - 1)] += mail.count
            if mail.origin not in self._share.workers:
                self._newest.put(m, mail.origin, x[self._slices[m]], self._versions[m])

    def read(self, x: Tensor) -> None:
        """Takes up the newest slices of others that have arrived."""
        for mail in self._newest.collect():
            if mail.stamp > self._versions[mail.origin]:
                x[self._slices[mail.origin]] = mail.vector
                self._versions[mail.origin] = mail.stamp

    def agree(self, made: int, goal: int) -> Agreed | None:
        """See `hpcopt.comm.ports.Mailbox`."""
        return self._gradients.agree(made, goal)

    def settle(self, x: Tensor, rate: Rate) -> Tensor:
        """All gradients are applied, and x is the same everywhere. Collective.

        Args:
            x, rate: as in `apply`.

        Returns:
            `counts` of all ranks, (N, bins), which begin anew.
        """
        self._gradients.pause()
        self.apply(x, rate)
        self._newest.pause()
        self._newest.collect()
        x.copy_(self._reduce.allgather(x[self._mine], len(x), by_worker=True))
        # now every slice has every gradient in it: all are of one age again
        self._versions = dict.fromkeys(self._slices, 0)
        own = x.new_zeros(self._share.n, self.counts.numel())
        own[0] = self.counts.flatten()
        total = self._reduce.scalars(own).reshape(self.counts.shape)
        self.counts.zero_()
        return total.to(self.counts)
