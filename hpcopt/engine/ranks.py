"""The ranks of a run together, as building, evaluation and records need them; or one that is all of them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

T = TypeVar("T")


class Ranks(Protocol):
    """All ranks of a run. Every call is collective; results are the same on every rank.

    Attributes:
        rank: this one's number.
        count: P.
    """

    rank: int
    count: int

    def each(self, thing: T) -> list[T]:
        """What every rank has, in their order; for small things."""

    def rows(self, rows: Floats) -> Floats:
        """A row of every worker, in their order, (N, k), from those of the workers here, (n, k)."""

    def sums(self, values: Floats) -> Floats:
        """Element by element, the sum over the ranks."""

    def largest(self, values: Floats) -> Floats:
        """Element by element, the largest of the ranks."""

    def different(self, numbers: NDArray[np.generic]) -> list[int]:
        """The ranks that have other bits than rank 0."""

    def agreed(self) -> AbstractContextManager[None]:
        """Local work within may raise an `HpcoptError`, which then rises on every rank."""


class OneRank:
    """`Ranks` of a run whose workers are all in this process."""

    rank, count = 0, 1

    def each(self, thing: T) -> list[T]:
        """See `Ranks`."""
        return [thing]

    def rows(self, rows: Floats) -> Floats:
        """See `Ranks`."""
        return rows

    def sums(self, values: Floats) -> Floats:
        """See `Ranks`."""
        return values

    def largest(self, values: Floats) -> Floats:
        """See `Ranks`."""
        return values

    def different(self, numbers: NDArray[np.generic]) -> list[int]:
        """See `Ranks`."""
        return []

    def agreed(self) -> AbstractContextManager[None]:
        """See `Ranks`."""
        return nullcontext()
