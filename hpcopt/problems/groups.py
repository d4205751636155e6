"""Which workers' numbers are computed in one computation, in place of one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from torch import Tensor

ROWS, ENTRIES = 2048, 1 << 24
"""most rows and most parameters that are in one computation: bounds the memory"""
FEWEST = 8
"""workers in a group that gain something"""


class Group(NamedTuple):
    """Workers whose numbers are computed together.

    Attributes:
        workers: from 0 here, ascending.
        at: where their rows are in a tensor that has one for each worker here.
    """

    workers: tuple[int, ...]
    at: slice | list[int]

    def of(self, X: Tensor) -> Tensor:
        """Their rows: a view where they are neighbours, else a copy."""
        return X[self.at]

    def first(self, count: int) -> Group:
        """The first so many of them."""
        return group_of(self.workers[:count])

    def put(self, to: Tensor, values: Tensor) -> None:
        """Writes back what `of` gave, if that was a copy."""
        if not isinstance(self.at, slice):
            to[self.at] = values

    def add(self, to: Tensor, values: Tensor) -> None:
        """Adds theirs, (g, …), to a tensor that has one for each worker here."""
        if isinstance(self.at, slice):
            to[self.at].add_(values)
        else:
            to[self.at] = to[self.at] + values


def in_groups(keys: Sequence[Hashable], most: Callable[[int], int]) -> list[Group]:
    """Groups of workers that have the same key.

    Args:
        keys: of each worker here.
        most: how many workers may be with worker i in a group.
    """
    alike: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        alike.setdefault(key, []).append(i)
    groups = []
    for workers in alike.values():
        count = -(-len(workers) // most(workers[0]))
        if not enough(len(workers) // count):  # each alone
            count = len(workers)
        for k in range(count):
            groups.append(group_of(workers[k * len(workers) // count : (k + 1) * len(workers) // count]))
    return groups


def enough(workers: int) -> bool:
    """Whether so many workers have anything to gain."""
    return workers >= FEWEST


def group_of(workers: Sequence[int]) -> Group:
    """The group of some workers, ascending."""
    first, last = workers[0], workers[-1]
    together = last - first + 1 == len(workers)
    return Group(tuple(workers), slice(first, last + 1) if together else list(workers))


def most_together(rows: int, dim: int) -> int:
    """How many workers may be in a group.

    Args:
        rows: that each of them has in a pass.
        dim: d.
    """
    return max(1, min(ROWS // max(1, rows), ENTRIES // dim))
