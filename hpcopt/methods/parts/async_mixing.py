"""Averages with neighbours' models as they arrive: nobody waits, nothing is averaged twice.

Lian et al., "Asynchronous decentralized parallel stochastic gradient descent", ICML 2018, arXiv 1710.06952.

A worker puts its model to those who would get it in synchronous gossip, after each of its steps. Who finds a
model moves towards it, x_n ← x_n + W_nm (x_m − x_n), once: an old model averaged again only slows it down.
Where the graph changes from round to round, the round is the number of the sender's step.

Differs from the paper: there two neighbours average in one atomic act, which keeps the mean of all models;
here only the receiver moves, and no one is ever locked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hpcopt.comm.ports import Ports
from hpcopt.math.mixing import Mixing
from hpcopt.math.optimizers import FirstOrderUpdate
from hpcopt.methods.parts.clock import Clock, DelayedSGDState, Due, Flat, Sizes
from hpcopt.methods.parts.free import BINS, Free
from hpcopt.methods.parts.late_rates import LateRates
from hpcopt.methods.parts.log import Log
from hpcopt.problems.base import Problem

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from hpcopt.config.methods.delayed import DelayedSGDTable

DEPTH = 2
"""models of a link under way, one that travels and one that is read: only the newest is of use"""


class AsyncMixing(Clock):
    """Models put to neighbours, and those that have arrived.

    Opening and `settle` are collective, nothing else. The staleness of a model is how many of that worker's
    the receiver has not yet taken when it is put.

    Args:
        settings: the window, the update, what carries the vectors, and whether a trace is kept.
        problem: the workers here.
        rates: η.
        mixing: W of each step.
        ports: of the run.
    """

    sizes = Sizes(past=0, waiting=0, bins=BINS)

    def __init__(
        self, settings: DelayedSGDTable, problem: Problem, rates: LateRates, mixing: Mixing, ports: Ports
    ) -> None:
        ports.agree_same(mixing.digest(), mixing.differs)
        self._reduce, self._here, self._rates = ports.reduce, problem.share.workers, rates
        self._weights = [links(W) for W in mixing.matrices]
        self._receivers = [_receivers(weights) for weights in self._weights]
        self._most = max(len(to) for receivers in self._receivers for to in [[], *receivers.values()])
        pairs, like = sorted({pair for weights in self._weights for pair in weights}), problem.initial()
        self._mailbox = ports.mailbox(like, pairs, depth=DEPTH, transport=settings.transport, full="newest")
        self._puts = dict.fromkeys(pairs, 0)
        self._taken = dict(self._puts)
        self._update, self._flat = FirstOrderUpdate(settings, clip=0), Flat(problem, settings.clip)
        self._log = Log(settings.trace_out, gradients=3 + self._most, averaged=5)
        self._free = Free(settings, problem.share, self._mailbox)

    def turns(self, state: DelayedSGDState) -> Iterator[Iterable[Due]]:
        """See `Clock`: a gradient at a time, of its worker's own model."""
        self._rate = self._rates.of(state.L, state.round)(0)
        for i, draw in self._free.turns(state):
            yield [Due(i, state.X[i], draw)]
        self.info = self._free.info

    def put(self, state: DelayedSGDState, due: Due, gradient: Sequence[Tensor]) -> None:
        """See `Clock`: x_n ← x_n − η update(∇f_n(x_n; ξ)), which goes to those who get it after this step."""
        late, worker = [], self._here[due.i]
        moments, rate = ([state.M[due.i]], [state.V[due.i]]), self._rate
        self._update.step([due.x], [self._flat.of(gradient)], *moments, due.draw + 1, rate)
        for to in self._receivers[due.draw % len(self._receivers)].get(worker, ()):
            pair = worker, to
            late.append(self._puts[pair] - max(self._taken[pair], self._mailbox.collected(*pair)))
            self._free.staleness.add(worker, late[-1])
            self._mailbox.put(*pair, due.x, due.draw)
            self._puts[pair] += 1
        self._log.add("gradients", worker, due.draw, state.round, *late, *[0] * (self._most - len(late)))

    def apply(self, state: DelayedSGDState) -> None:
        """See `Clock`: x_n ← x_n + W_nm (x_m − x_n) for the models that have arrived, in that order."""
        for mail in self._mailbox.collect():
            i = mail.to - self._here.start
            weight = self._weights[mail.stamp % len(self._weights)][mail.origin, mail.to]
            state.X[i].lerp_(mail.vector, weight)
            self._log.add("averaged", mail.to, int(state.made[i]), mail.origin, mail.stamp, bits(weight))

    def settle(self, state: DelayedSGDState) -> None:
        """See `Clock`: all models that were put are averaged."""
        self._mailbox.pause()
        self.apply(state)
        # all of them are taken, though nobody has been told yet
        self._taken = dict(self._puts)
        state.counts += self._free.staleness.take(self._reduce)

    def trace(self) -> dict[str, NDArray[np.int64]]:
        """What replays the run to the bit, since the last call; nothing where nothing is logged. Local.

        Returns:
            "gradients": of the workers here, in the order in which they were made: worker, mini-batch, round,
            and of each worker that got the model then how many it had not yet taken, in ascending order and
            filled up with 0, (worker, draw, round, *late), (k, 3 + R);
            "averaged": in the order in which it was: which worker averaged, after how many steps of its own,
            with which neighbour's model of which step, with which weight, as float64's bits,
            (worker, made, neighbour, step, weight), (k, 5).
        """
        return self._log.take()


def bits(weight: float) -> int:
    """A weight as a whole number."""
    return int(np.float64(weight).view(np.int64))


def _receivers(weights: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """origin -> to."""
    found: dict[int, list[int]] = {}
    for origin, to in weights:
        found.setdefault(origin, []).append(to)
    return found


def links(W: csr_array) -> dict[tuple[int, int], float]:
    """(origin, to) -> W_to,origin, but for the diagonal."""
    at = W.tocoo()
    rows = zip(at.coords[1].tolist(), at.coords[0].tolist(), at.data.tolist(), strict=True)
    return {(origin, to): weight for origin, to, weight in rows if origin != to}
