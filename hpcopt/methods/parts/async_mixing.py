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
        self._weights = [_weights(W) for W in mixing.matrices]
        self._receivers = [_receivers(weights) for weights in self._weights]
        links = sorted({pair for weights in self._weights for pair in weights})
        self._mailbox = ports.mailbox(x, links, depth=DEPTH, transport=transport, full="newest")
        self._puts = dict.fromkeys(links, 0)
        self.staleness = Staleness(share, bins)
        self._log: list[tuple[int, ...]] | None = [] if logs else None

    def put(self, worker: int, step: int, x: Tensor) -> None:
        """A worker's model, (d,), after a step of its own, to those who get it in this round."""
        for to in self._receivers[step % len(self._receivers)].get(worker, ()):
            self.staleness.add(worker, self._puts[worker, to] - self._mailbox.collected(worker, to))
            self._mailbox.put(worker, to, x, step)
            self._puts[worker, to] += 1

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
            if self._log is not None:
                self._log.append((mail.to, int(made[i]), mail.origin, mail.stamp))

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
        """What was logged here since the last call; nothing where nothing is logged. Local.

        Returns:
            "averaged": which worker averaged, after how many steps of its own, with which neighbour's model
            of which step, (worker, made, neighbour, step), (k, 4).
        """
        if self._log is None:
            return {}
        averaged = np.array(self._log, np.int64).reshape(-1, 4)
        self._log = []
        return {"averaged": averaged}


def _receivers(weights: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """origin -> to."""
    found: dict[int, list[int]] = {}
    for origin, to in weights:
        found.setdefault(origin, []).append(to)
    return found


def _weights(W: csr_array) -> dict[tuple[int, int], float]:
    """(origin, to) -> W_to,origin, but for the diagonal."""
    at = W.tocoo()
    rows = zip(at.coords[1].tolist(), at.coords[0].tolist(), at.data.tolist(), strict=True)
    return {(origin, to): weight for origin, to, weight in rows if origin != to}
