"""Weighted averages of rows, in place and in a fixed order of their terms.

An average is given by its terms (k, w): the sum of w times row k of X, or row k - n of other rows for k ≥ n.
Terms are added one after the other, element by element, so that an average has the same bits wherever its
rows lie.

Symbols: n rows here, m columns, r other rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Terms = Sequence[Sequence[tuple[int, float]]]
"""for each of the n averages its terms, at least one"""

CACHED = {"cpu": 1 << 18, "cuda": 1 << 24}
"""elements of the n rows that are worked on at once: in the cache of a core; enough to fill a GPU"""
WIDEST = {"cpu": 1 << 13, "cuda": 1 << 24}
NARROWEST = 1 << 10
"""columns of a chunk, powers of two: so only the last chunk has elements outside of vector instructions"""


def average(X: Tensor, others: Tensor, terms: Terms) -> None:
    """Replaces the rows of X by their averages.

    Args:
        X: (n, m), rows contiguous.
        others: (r, m), rows contiguous.
        terms: of each row's average.
    """
    for columns, averages in _chunks(X, others, terms):
        X[:, columns].copy_(averages)


def add_change(X: Tensor, rows: Tensor, others: Tensor, terms: Terms) -> None:
    """X ← X + averages of ``rows`` − ``rows``; all of them as in `average`."""
    for columns, averages in _chunks(rows, others, terms):
        X[:, columns].add_(averages.sub_(rows[:, columns]))


def _chunks(X: Tensor, others: Tensor, terms: Terms) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of columns and the averages there, (n, columns); those that were yielded may be overwritten."""
    n, m = X.shape
    width = _width(n, X.device.type)
    scratch = torch.empty((n, min(width, m)), dtype=X.dtype, device=X.device)
    for start in range(0, m, width):
        columns = slice(start, min(start + width, m))
        averages = scratch[:, : columns.stop - start]
        sources = X[:, columns].unbind() + others[:, columns].unbind()
        for total, summands in zip(averages.unbind(), terms, strict=True):
            _sum(total, sources, summands)
        yield columns, averages


def _sum(total: Tensor, sources: Sequence[Tensor], summands: Sequence[tuple[int, float]]) -> None:
    first, weight = summands[0]
    torch.mul(sources[first], weight, out=total)
    for source, weight in summands[1:]:
        total.add_(sources[source], alpha=weight)


def _width(rows: int, device: str) -> int:
    """Columns of a chunk: a power of two."""
    fitting = CACHED[device] // max(rows, 1)
    return min(WIDEST[device], max(NARROWEST, 1 << fitting.bit_length() - 1 if fitting else 0))
