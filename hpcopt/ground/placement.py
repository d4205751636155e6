"""Which rank hosts which workers: decided once, and given to the problem, the ports and the files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


WORTH = 1.02
"""by what factor the largest of blocks of equal numbers may be larger than the largest of balanced ones"""


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

    @classmethod
    def balanced(cls, work: Sequence[int], ranks: int = 1, rank: int = 0) -> Placement:
        """Blocks of about equal work: the largest is as small as it can be, and none is empty.

        Equal numbers of workers where these are hardly slower, see `WORTH`.

        Args:
            work: of each worker, (N,), N at least P, none negative; the same on every rank.
            ranks, rank: P, and this process's.

        >>> Placement.balanced([9, 1, 1, 1, 1, 1, 1, 1], 3).counts
        (1, 4, 3)
        """
        import numpy as np

        even = cls.even(len(work), ranks, rank)
        ends = np.concatenate([[0], np.cumsum(np.array(work, np.int64))])
        limit = _limit(ends, ranks)
        if np.diff(ends[list(even.starts)]).max() <= WORTH * limit:
            return even
        return cls(tuple(np.diff(_cuts(ends, ranks, limit)).tolist()), rank)

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


def _limit(ends: NDArray[np.int64], parts: int) -> int:
    """The least work of the largest of so many blocks; ``ends``: of the first 0, 1, …, N workers, summed."""
    import numpy as np

    largest, total, last = int(np.diff(ends).max()), int(ends[-1]), len(ends) - 1
    low = max(largest, -(-total // parts))
    high = low + largest
    while low < high:
        limit, at = (low + high) // 2, 0
        for _ in range(parts):  # each takes what it can
            at = int(np.searchsorted(ends, ends[at] + limit, "right")) - 1
            if at == last:
                break
        low, high = (low, limit) if at == last else (limit + 1, high)
    return low


def _cuts(ends: NDArray[np.int64], parts: int, limit: int) -> list[int]:
    """Where blocks begin and end, (P + 1,): none has more than that, and each about its part of the rest."""
    import numpy as np

    work, last = np.diff(ends), len(ends) - 1
    # workers that have more than their part keep a rank busy each; what is left is for the others
    large = np.zeros(last, dtype=bool)
    while (more := work > work[~large].sum() / (parts - large.sum())).sum() > large.sum():
        large = more
    small, ranks = (np.concatenate([[0], np.cumsum(of)]) for of in (work * ~large, large))
    # from where on the blocks that are left can have all that is left
    earliest = [last]
    for _ in range(parts - 1):
        earliest.append(int(np.searchsorted(ends, ends[earliest[-1]] - limit, "left")))
    cuts = [0]
    for left in range(parts - 1, 0, -1):  # blocks after this one
        at = cuts[-1]
        others = left + 1 - (ranks[last] - ranks[at])
        fair = ends[at] + ((small[last] - small[at]) / others if others > 0 else limit)
        after = int(np.searchsorted(ends, fair, "right"))
        nearest = after - (fair - ends[after - 1] < ends[min(after, last)] - fair)
        latest = int(np.searchsorted(ends, ends[at] + limit, "right")) - 1
        cuts.append(max(at + 1, earliest[left], min(nearest, latest, last - left)))
    return [*cuts, last]
