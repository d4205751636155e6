"""A trace of free workers, all of it: checked, and gone through stretch by stretch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from hpcopt.errors import UserError
from hpcopt.methods.parts.stretch import Stretch

if TYPE_CHECKING:
    from hpcopt.storage.trace import Rows, Segment, Trace


class Way(Protocol):
    """Through a stretch: `hpcopt.methods.parts.walk`, `hpcopt.methods.parts.mixing_walk`.

    Attributes:
        changes: the rounds in which anything happens.
    """

    changes: Rows

    def waves(self, round: int) -> Iterator[Any]:
        """What is left to do until all of a round is done; rounds are asked for in order.

        Raises:
            UserError: something depends on itself.
        """

    def sizes(self) -> tuple[int, ...]:
        """How much has to be kept now, of whatever is kept from round to round."""


W = TypeVar("W", bound=Way)


class Plan(Generic[W]):
    """A trace, checked from the first row to the last without computing any gradient. Local.

    Args:
        trace: of free workers.
        workers: N.
        dim: d.
        window: rows of a round, where the trace does not say.
        way: through a stretch.

    Attributes:
        digest, differs: of the trace, and what to say where ranks have different ones.
        rounds: in which anything happens.
        sizes: the largest of `Way.sizes` where a round ends.

    Raises:
        UserError: it is another run's, or cannot be.
    """

    def __init__(
        self, trace: Trace, workers: int, dim: int, window: int, way: Callable[[Stretch], W]
    ) -> None:
        self.digest, made_for = trace.digest(), trace.made_for or (workers, dim)
        if made_for != (workers, dim):
            raise UserError(
                f"{trace.path}: is of {made_for[0]} workers and {made_for[1]} parameters, but there are "
                f"{workers} workers and {dim} parameters"
            )
        self.differs = f"trace = {trace.path!r}: not the same file on all ranks"
        self._way, self._stretches = way, _stretches(trace, workers, window)
        self._ends = [stretch.rounds.stop for stretch in self._stretches]
        self.rounds = self._ends[-1] if self._ends else 0
        self.sizes = tuple(map(max, zip(*(self._try(stretch) for stretch in self._stretches), strict=True)))
        self._now: tuple[int, W] | None = None

    def _try(self, stretch: Stretch) -> tuple[int, ...]:
        way, last, sizes = self._way(stretch), stretch.rounds.stop - 1, []
        for round in [*way.changes[way.changes < last].tolist(), last]:
            for _ in way.waves(round):
                pass
            sizes.append(way.sizes())
        return tuple(map(max, zip(*sizes, strict=True)))

    def at(self, round: int) -> tuple[W, bool]:
        """The way at the beginning of a round that the trace has; whether it is not the last one's."""
        fresh = self._now is None or self._now[0] + 1 != round or round in self._ends
        if fresh:
            stretch = self._stretches[bisect_right(self._ends, round)]
            way = self._way(stretch)
            if round > stretch.rounds.start:
                for _ in way.waves(round - 1):
                    pass
        else:
            assert self._now is not None
            way = self._now[1]
        self._now = round, way
        return way, fresh


def _stretches(trace: Trace, workers: int, window: int) -> list[Stretch]:
    found: list[Stretch] = []
    begin, drawn = 0, np.zeros(workers, np.int64)
    for segment in trace.segments:
        segment = _windows(segment, window) if trace.window else segment
        found.append(Stretch(trace, segment, range(begin, segment.end), drawn))
        begin = segment.end
        drawn = drawn + np.array([len(made) for made in found[-1].gradients])
    return found


def _windows(segment: Segment, window: int) -> Segment:
    """With so many rows in each round."""
    applied = segment.applied.copy()
    applied[:, 3] = np.arange(len(applied)) // window
    return replace(segment, applied=applied, end=int(applied[-1, 3]) + 1)
