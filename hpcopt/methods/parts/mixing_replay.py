"""A run of free workers that average with their neighbours, made again to the bit on any number of ranks.

All ranks go through the trace together. A worker's steps are made where it is; a model that anybody averages
reaches all ranks, which keep it until nobody needs it any more.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from hpcopt.comm.ports import Reducer
from hpcopt.methods.parts.mixing_walk import MixingWalk, Turn
from hpcopt.methods.parts.plan import Plan
from hpcopt.problems.base import Share


class MixingReplay:
    """Makes a run again.

    Args:
        plan: of its trace.
        reduce: the port.
        share: the workers here.
    """

    def __init__(self, plan: Plan[MixingWalk], reduce: Reducer, share: Share) -> None:
        self._plan, self._reduce, self._share = plan, reduce, share
        self._models: dict[tuple[int, int], Tensor] = {}

    def turns(self, round: int, waiting: Tensor) -> Iterator[Turn]:
        """What there is to do in a round; afterwards ``waiting`` is what the next one needs.

        Args:
            round: any at first, then one after the other.
            waiting: models, as many as `MixingWalk.sizes` says, (W, d).
        """
        if round >= self._plan.rounds:
            return
        walk, fresh = self._plan.at(round)
        if fresh:
            self._models = {one: waiting[i].clone() for i, one in enumerate(sorted(walk.kept))}
        for turn in walk.waves(round):
            yield turn
            for one in turn.spent:
                del self._models[one]
        for i, one in enumerate(sorted(walk.kept)):
            waiting[i] = self._models[one]

    def over(self, round: int) -> bool:
        """Whether a round is the trace's last."""
        return round + 1 >= self._plan.rounds

    def mix(self, X: Tensor, turn: Turn) -> None:
        """x_n ← x_n + W_nm (x_m − x_n), as `AsyncMixing.mix` did. Collective.

        Args:
            X: models of the workers here, after their steps, (n, d).
            turn: these steps, and what was averaged.
        """
        if turn.taken:
            N, d = self._share.total, X.shape[1]
            every = self._reduce.allgather(X.flatten(), N * d, by_worker=True).reshape(N, d)
            self._models |= {(n, number): every[n].clone() for n, number in turn.taken}
        for one in turn.averaged:
            if one.worker in self._share.workers:
                i = one.worker - self._share.workers.start
                X[i].lerp_(self._models[one.neighbour, one.step], one.weight)
