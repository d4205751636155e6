"""Averages with neighbours' models as they arrive: nobody waits, nothing is averaged twice.

Lian et al., "Asynchronous decentralized parallel stochastic gradient descent", ICML 2018, arXiv 1710.06952.

A worker puts its model to those who would get it in synchronous gossip, after each of its steps. Who finds a
model moves towards it, x_n ← x_n + W_nm (x_m − x_n), once: an old model averaged again only slows it down.
Where the graph changes from round to round, the round is the number of the sender's step.

Differs from the paper: there two neighbours average in one atomic act, which keeps the mean of all models;
here only the receiver moves, and no one is ever locked.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hpcopt.comm.ports import Agreed, Ports, Transport
from hpcopt.math.mixing import Mixing
from hpcopt.methods.parts.log import Log
from hpcopt.methods.parts.staleness import Staleness
from hpcopt.problems.base import Share

if TYPE_CHECKING:
    from scipy.sparse import csr_array

DEPTH = 2
"""models of a link under way, one that travels and one that is read: only the newest is of use"""


class AsyncMixing:
    """Models put to neighbours, and those that have arrived. Opening and `settle` are collective, only they.

    Args:
        ports: of the run.
        share: the workers here.
        x: a vector like a model, (d,).
        mixing: W of each round.
        bins: for the staleness, see `Staleness`.
        transport: what carries the vectors.
        logs: whether to log what happens.

    Attributes:
        staleness: whenever a model is put, how many of that worker's the receiver has not yet taken.
    """

    def __init__(
        self,
        ports: Ports,
        share: Share,
        x: Tensor,
        mixing: Mixing,
        bins: int,
        transport: Transport,
        logs: bool,
    ) -> None:
        self._share = share
        self._weights = [links(W) for W in mixing.matrices]
        self._receivers = [_receivers(weights) for weights in self._weights]
        pairs = sorted({pair for weights in self._weights for pair in weights})
        self._mailbox = ports.mailbox(x, pairs, depth=DEPTH, transport=transport, full="newest")
        self._puts = dict.fromkeys(pairs, 0)
        self.staleness = Staleness(share, bins)
        self._most = max(len(to) for receivers in self._receivers for to in [[], *receivers.values()])
        self._log = Log(logs, gradients=3 + self._most, averaged=5)

    def put(self, worker: int, step: int, round: int, x: Tensor) -> None:
        """A worker's model, (d,), after a step of its own in a round, to those who get it after this step."""
        late = []
        for to in self._receivers[step % len(self._receivers)].get(worker, ()):
            late.append(self._puts[worker, to] - self._mailbox.collected(worker, to))
            self.staleness.add(worker, late[-1])
            self._mailbox.put(worker, to, x, step)
            self._puts[worker, to] += 1
        self._log.add("gradients", worker, step, round, *late, *[0] * (self._most - len(late)))

    def mix(self, X: Tensor, made: Tensor) -> None:
        """x_n ← x_n + W_nm (x_m − x_n) for the models that have arrived, in the order of arrival.

        Args:
            X: models of the workers here, (n, d).
            made: how many steps each has made, (n,), for the log.
        """
        for mail in self._mailbox.collect():
            i = mail.to - self._share.workers.start
            weight = self._weights[mail.stamp % len(self._weights)][mail.origin, mail.to]
            X[i].lerp_(mail.vector, weight)
            self._log.add("averaged", mail.to, int(made[i]), mail.origin, mail.stamp, bits(weight))

    def agree(self, made: int, goal: int) -> Agreed | None:
        """See `hpcopt.comm.ports.Mailbox`."""
        return self._mailbox.agree(made, goal)

    def settle(self, X: Tensor, made: Tensor) -> None:
        """All models that were put have arrived and are averaged. Collective.

        Args:
            X, made: as in `mix`.
        """
        self._mailbox.pause()
        self.mix(X, made)

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
