"""A model that every worker owns a slice of, kept up to date by vectors that workers put to each other.

Worker m owns slice m of N, the same on any number of ranks. Who has a gradient puts its slices to their
owners. An owner applies what it finds and puts its newest slice back to those whose gradients it applied, so
a worker's model has slices of different ages. A slice's version is the number of gradients in it; the
staleness of a gradient, slice by slice, how many others were applied since the version that it is of.

There is no server, and nobody waits: a gradient that meets a full link is added to the one that waits there,
an old slice makes room for a newer one.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hpcopt.comm.ports import Agreed, Ports, Transport
from hpcopt.ground.placement import block
from hpcopt.methods.parts.late_rates import Rate
from hpcopt.methods.parts.log import Log
from hpcopt.methods.parts.staleness import Staleness, mean_staleness
from hpcopt.problems.base import Share


class Owners:
    """The slices owned here, and how they are exchanged. Opening and `settle` are collective, nothing else.

    Args:
        ports: of the run.
        share: the workers here.
        x: a vector like the model, (d,).
        bins: for the staleness, see `Staleness`.
        transport: what carries the vectors.
        logs: whether to log what happens.

    Attributes:
        staleness: of the slices of gradients that were applied here.
    """

    def __init__(
        self, ports: Ports, share: Share, x: Tensor, bins: int, transport: Transport, logs: bool
    ) -> None:
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
        self.staleness = Staleness(share, bins)
        self._log = Log(logs, gradients=2 + len(self._slices), applied=4)

    def put(self, worker: int, draw: int, gradient: Tensor) -> None:
        """A worker's gradient, (d,), on a mini-batch, at the model as it is here."""
        self._log.add("gradients", worker, draw, *self._versions.values())
        for m, part in self._slices.items():
            self._gradients.put(worker, m, gradient[part], self._versions[m])

    def apply(self, x: Tensor, round: int, rate: Rate) -> None:
        """x_m ← x_m − η(τ) g for what has arrived for the slices m owned here, in the order of arrival.

        Args:
            x: the model as it is here, (d,).
            round: of the worker's, for the log.
            rate: η of a staleness; of gradients that were added up on their way, of their mean.
        """
        for mail in self._gradients.collect():
            m, late = mail.to, mean_staleness(self._versions[mail.to], mail.stamps, mail.count)
            self._log.add("applied", m, mail.origin, mail.count, round)
            x[self._slices[m]].add_(mail.vector, alpha=-rate(late))
            self._versions[m] += mail.count
            self.staleness.add(mail.origin, late, mail.count)
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

    def settle(self, x: Tensor, round: int, rate: Rate) -> None:
        """All gradients are applied, and x is the same everywhere. Collective.

        Args:
            x, round, rate: as in `apply`.
        """
        self._gradients.pause()
        self.apply(x, round, rate)
        self._newest.pause()
        self._newest.collect()
        x.copy_(self._reduce.allgather(x[self._mine], len(x), by_worker=True))
        # now every slice has every gradient in it: all are of one age again
        self._versions = dict.fromkeys(self._slices, 0)

    def trace(self) -> dict[str, NDArray[np.int64]]:
        """What replays the run to the bit, since the last call; nothing where nothing is logged. Local.

        Versions are counted from the last `settle` on.

        Returns:
            "gradients": of the workers here, in the order in which they were made: worker, mini-batch, and
            the version of every slice that the worker knew, (worker, draw, *versions), (k, 2 + S);
            "applied": to the slices owned here, in the order in which they were: slice, the worker that
            the gradients are of, how many of them, the next ones, were added up before, and the round,
            (slice, worker, count, round), (k, 4).
        """
        return self._log.take()
