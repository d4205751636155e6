"""Who holds what: contiguous blocks, a pure function of the numbers alone."""

from __future__ import annotations


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
