"""A model that every worker owns a slice of, kept up to date by vectors that workers put to each other.

Worker m owns slice m of N, the same on any number of ranks. Who has a gradient puts its slices to their
owners. An owner's slice changes as soon as they arrive, while the owner's own gradient, of the model as it
was, is still being computed; the newest slice goes back to whose gradient it was. So a worker's model has
slices of different ages; the moments of one stay with its owner. A slice's version is the number of gradients
in it; the staleness of a gradient, slice by slice, how many others were applied since the version that it is
of.

There is no server, and nobody waits: a gradient that meets a full link is added to the one that waits there,
an old slice makes room for a newer one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hpcopt.comm.ports import Mail, Ports
from hpcopt.ground.placement import block
from hpcopt.math.optimizers import FirstOrderUpdate
from hpcopt.methods.parts.clock import Clock, DelayedSGDState, Due, Flat, Sizes
from hpcopt.methods.parts.free import BINS, Free
from hpcopt.methods.parts.late_rates import LateRates
from hpcopt.methods.parts.log import Log
from hpcopt.methods.parts.staleness import mean_staleness
from hpcopt.problems.base import Problem

if TYPE_CHECKING:
    from hpcopt.config.methods.delayed import DelayedSGDTable


@dataclass
class Slice:
    """A slice as its owner has it.

    Attributes:
        x, m, v: its parameters and their moments, which may be empty.
        updates: how many it has had.
    """

    x: Tensor
    m: Tensor
    v: Tensor
    updates: int

    @classmethod
    def of(cls, state: DelayedSGDState, m: int, part: slice) -> Slice:
        """Slice m of a state, new memory."""
        x, first, second = (of[part].clone() for of in (state.x, state.m, state.v))
        return cls(x, first, second, int(state.updates[m : m + 1].sum()))

    def apply(self, update: FirstOrderUpdate, g: Tensor, eta: float) -> None:
        """x ← x − η update(g)."""
        self.updates += 1
        update.step([self.x], [g], [self.m], [self.v], self.updates, eta, keep=True)

    def hand_over(self, state: DelayedSGDState, m: int, part: slice) -> None:
        """All of it but x, to a state."""
        state.m[part], state.v[part] = self.m, self.v
        state.updates[m : m + 1] = self.updates


class Owners(Clock):
    """The slices owned here, and how they are exchanged.

    Opening and `settle` are collective, nothing else. Two threads share it: the slices owned here change in
    `_arrived`, which the mailbox calls, the model that is computed with only between two gradients.

    Args:
        settings: the window, the update, what carries the vectors, and whether a trace is kept.
        problem: the workers here.
        rates: η.
        ports: of the run.
    """

    sizes = Sizes(past=0, waiting=0, bins=BINS)

    def __init__(self, settings: DelayedSGDTable, problem: Problem, rates: LateRates, ports: Ports) -> None:
        self._reduce, self._share, self._rates = ports.reduce, problem.share, rates
        N, here, x = problem.share.total, problem.share.workers, problem.initial()
        starts = [block(len(x), N, m).start for m in range(N)] + [len(x)]
        self._mine = slice(starts[here.start], starts[here.stop])
        # with fewer parameters than workers some own nothing
        self._slices = {m: slice(*ends) for m, ends in enumerate(pairwise(starts)) if ends[0] < ends[1]}
        # of the model as it is known here; of the slices owned here
        self._versions = dict.fromkeys(self._slices, 0)
        self._own: dict[int, Slice] = {}
        self._applied = dict.fromkeys((m for m in here if m in self._slices), 0)
        self._changing = threading.Lock()
        there = [(n, m) for n in range(N) for m in self._slices]
        back = [(m, n) for n, m in there]
        like, transport = x[self._slices[0]], settings.transport
        self._gradients = ports.mailbox(like, there, transport=transport, receive=self._arrived)
        self._newest = ports.mailbox(like, back, transport=transport, full="newest")
        self._log = Log(settings.trace_out, gradients=2 + len(self._slices), applied=4)
        self._update, self._flat = FirstOrderUpdate(settings, clip=0), Flat(problem, settings.clip)
        self._free = Free(settings, problem.share, self._gradients)

    def turns(self, state: DelayedSGDState) -> Iterator[Iterable[Due]]:
        """See `Clock`: a gradient at a time, of the model as it is here."""
        if not self._own:  # nothing arrives before this rank's first call of the mailbox
            self._own = {m: Slice.of(state, m, self._slices[m]) for m in self._applied}
        self._now = state.round, self._rates.of(state.L, state.round)
        for i, draw in self._free.turns(state):
            yield [Due(i, state.x, draw)]
        self.info = self._free.info

    def put(self, state: DelayedSGDState, due: Due, gradient: Sequence[Tensor]) -> None:
        """See `Clock`: its slices go to their owners, with the versions that they are of."""
        g, worker = self._flat.scaled(due.i, gradient), self._share.workers[due.i]
        self._log.add("gradients", worker, due.draw, *self._versions.values())
        for m, part in self._slices.items():
            self._gradients.put(worker, m, g[part], self._versions[m])

    def apply(self, state: DelayedSGDState) -> None:
        """See `Clock`: x ← the newest slices, those owned here and those that have come back."""
        self._gradients.collect()  # and whatever has arrived is applied
        with self._changing:
            for m, own in self._own.items():
                self._renew(state, m, own.x, self._applied[m])
        for mail in self._newest.collect():
            self._renew(state, mail.origin, mail.vector, mail.stamp)

    def _renew(self, state: DelayedSGDState, m: int, part: Tensor, version: int) -> None:
        """Slice m of the model that is computed with, if this one is newer."""
        if version > self._versions[m]:
            state.x[self._slices[m]] = part
            self._versions[m] = version

    def _arrived(self, mail: Mail) -> None:
        """x_m ← x_m − η(τ) update(g) for the slice m that is owned here, whatever is being computed.

        The staleness of gradients that were added up on their way is their mean.
        """
        m, late = mail.to, mean_staleness(self._applied[mail.to], mail.stamps, mail.count)
        round, rate = self._now
        with self._changing:
            self._own[m].apply(self._update, mail.vector, rate(late))
            self._applied[m] += mail.count
        self._log.add("applied", m, mail.origin, mail.count, round)
        self._free.staleness.add(mail.origin, late, mail.count)
        if mail.origin not in self._share.workers:
            self._newest.put(m, mail.origin, self._own[m].x, self._applied[m])

    def settle(self, state: DelayedSGDState) -> None:
        """See `Clock`: afterwards x is the same everywhere."""
        # of the round that is made: the next one's rate may be 0
        made = max(state.round - 1, 0)
        self._now = made, self._rates.of(state.L, made)
        self._gradients.pause()
        self.apply(state)
        self._newest.pause()
        self._newest.collect()
        for m, own in self._own.items():
            own.hand_over(state, m, self._slices[m])
        for of in (state.x, state.m, state.v):
            if len(of):
                of.copy_(self._reduce.allgather(of[self._mine], len(of), by_worker=True))
        if len(state.updates):
            here = self._share.workers
            mine = state.updates[here.start : here.stop].to(state.x)
            state.updates.copy_(self._reduce.allgather(mine, self._share.total, by_worker=True))
        # now every slice has every gradient in it: all are of one age again
        self._versions = dict.fromkeys(self._slices, 0)
        self._applied = dict.fromkeys(self._applied, 0)
        state.counts += self._free.staleness.take(self._reduce)

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
