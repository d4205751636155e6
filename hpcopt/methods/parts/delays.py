"""Whose gradients arrive in a round, and of which model they are: a function of the settings and the seed.

A gradient of delay τ that arrives in round t is of x_{t−τ}, the model at the beginning of round t − τ, before
that round's update: the paper's w_{t+1} = w_t − η ∇f(w_{t−τ}). So on a schedule a worker that hands in a
gradient takes up the model of that moment, in which the gradient is not yet: with τ = 1 it is one update
stale. (One that took up the model after the update would follow the formula with τ − 1.) Before round τ
gradients are of x_0; on a schedule that is worker n's first one, in round n mod τ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpcopt.errors import UserError
from hpcopt.math.streams import stream

if TYPE_CHECKING:
    from hpcopt.config.methods.delayed import DelayedSGDTable


@dataclass(frozen=True)
class Arrival:
    """A gradient that arrives.

    Attributes:
        worker: n, of all N.
        read: t − τ_n, the round at whose beginning the model was the one of the gradient; 0 at the earliest.
        staleness: updates since then.
        draw: which of the worker's mini-batches.
    """

    worker: int
    read: int
    staleness: int
    draw: int


class Delays:
    """The delays of a run.

    Args:
        settings: say which.
        workers: N.
        seed: of random ones.

    Attributes:
        longest: the longest delay that may come.

    Raises:
        UserError: not every worker has one.
    """

    def __init__(self, settings: DelayedSGDTable, workers: int, seed: int) -> None:
        delay, self._seed, self._workers = settings.delay, seed, workers
        self.longest = settings.longest
        self._periodic = settings.mode == "schedule"
        self._fixed: Sequence[int] | None = None
        if isinstance(delay, str):
            return
        self._fixed = delay if isinstance(delay, list) else [delay] * workers
        if len(self._fixed) != workers:
            raise UserError(
                f"[method] delay has {len(self._fixed)} entries, but there are {workers} workers: "
                "give one of each, or a single number"
            )

    def at(self, t: int) -> list[Arrival]:
        """The gradients of round t, in the order of the workers."""
        if self._fixed is None:
            delays: Sequence[int] = (
                stream(self._seed, "delay", t).integers(0, self.longest + 1, self._workers).tolist()
            )
        else:
            delays = self._fixed
        return [
            Arrival(n, read, self._updates(read, t), t // delay if self._periodic else t)
            for n, delay in enumerate(delays)
            if self._arrives(n, t)
            for read in [max(0, t - delay)]
        ]

    def _arrives(self, n: int, t: int) -> bool:
        return not self._periodic or (self._fixed is not None and (t - n) % self._fixed[n] == 0)

    def _updates(self, read: int, t: int) -> int:
        """Rounds from ``read`` on and before t in which the model was changed."""
        if not self._periodic:
            return t - read
        return sum(any(self._arrives(n, s) for n in range(self._workers)) for s in range(read, t))
