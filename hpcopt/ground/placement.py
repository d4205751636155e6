"""Which rank hosts which workers: decided once, and given to the problem, the ports and the files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Placement:
    """N workers on P ranks, in contiguous blocks; a rank may host none.

    Attributes:
        counts: workers of each rank, (P,).
        rank: this process's.

    >>> Placement.even(5, 3, rank=1).here
    range(2, 4)
    """

    counts: tuple[int, ...]
    rank: int = 0

    @classmethod
    def even(cls, workers: int, ranks: int = 1, rank: int = 0) -> Placement:
        """Blocks whose sizes differ by at most 1, the larger ones first."""
        return cls(tuple(sizes(workers, ranks)), rank)

    @cached_property
    def total(self) -> int:
        """N."""
        return sum(self.counts)

    @property
    def ranks(self) -> int:
        """P."""
        return len(self.counts)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first worker of each rank, and N, (P + 1,)."""
        return tuple(accumulate(self.counts, initial=0))

    def at(self, rank: int) -> range:
        """The workers of a rank."""
        return range(self.starts[rank], self.starts[rank + 1])

    @property
    def here(self) -> range:
        """The workers of this rank."""
        return self.at(self.rank)

    @property
    def n(self) -> int:
        """How many workers this rank hosts."""
        return self.counts[self.rank]

    @cached_property
    def owners(self) -> NDArray[np.int64]:
        """The rank of every worker, (N,)."""
        import numpy as np

        return np.repeat(np.arange(self.ranks), self.counts)


def block(total: int, parts: int, index: int) -> range:
    """The ``index``-th of ``parts`` contiguous blocks of ``range(total)``; sizes differ by at most 1.

    >>> [list(block(5, 3, p)) for p in range(3)]
    [[0, 1], [2, 3], [4]]
    """
    small, larger = divmod(total, parts)
    start = index * small + min(index, larger)
    return range(start, start + small + (index < larger))


def sizes(total: int, parts: int) -> list[int]:
    """The lengths of all blocks."""
    return [len(block(total, parts, index)) for index in range(parts)]
