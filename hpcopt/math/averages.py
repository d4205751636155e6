"""Weighted averages of rows, in place.

An average is given by its terms (k, w): the sum of w times row k of X, or row k - n of other rows for k ≥ n.
Terms are added one after the other, element by element, so that an average has the same bits wherever its
rows lie. Where averages have many terms a product of matrices is an order of magnitude faster, for those who
do not need that.

Symbols: n rows here, m columns, r other rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Terms = Sequence[Sequence[tuple[int, float]]]
"""for each of the n averages its terms, at least one"""

CHUNK = 1 << 13
"""columns that are worked on at once, so that one row's sum stays in the cache of a core"""
GPU_ELEMENTS = 1 << 24
"""elements that are worked on at once on a GPU, where few large kernels are better"""
MANY_TERMS = 16
FILLED = 1 / 8
"""of a matrix, from where on a product is faster: on one core it takes 0.13 s where 128 averages of 128 rows
of 235,146 numbers, term by term, take 3.2 s"""


class Averages:
    """The averages that replace n rows.

    Args:
        terms: of each row's average.
        others: r.
        like: a tensor of the rows' dtype, on their device.
        ordered: always term by term.
    """

    def __init__(self, terms: Terms, others: int, like: Tensor, ordered: bool = True) -> None:
        self._terms = terms
        self._matrix: Tensor | None = None
        rows, entries = len(terms), sum(map(len, terms))
        if not ordered and entries > max(MANY_TERMS * rows, FILLED * rows * (rows + others)):
            self._matrix = _matrix(terms, rows + others).to(like)

    def replace(self, X: Tensor, others: Tensor) -> None:
        """Replaces the rows of X by their averages.

        Args:
            X: (n, m), rows contiguous.
            others: (r, m), rows contiguous.
        """
        for columns, averages in self._chunks(X, others):
            X[:, columns].copy_(averages)

    def add_change(self, X: Tensor, rows: Tensor, others: Tensor) -> None:
        """X ← X + averages of ``rows`` − ``rows``, shapes as in `replace`."""
        for columns, averages in self._chunks(rows, others):
            X[:, columns].add_(averages.sub_(rows[:, columns]))

    def _chunks(self, X: Tensor, others: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Ranges of columns and the averages there, (n, columns), which may be overwritten."""
        n, m = X.shape
        width = CHUNK if X.device.type == "cpu" else max(CHUNK, GPU_ELEMENTS // max(n, 1))
        scratch = torch.empty((n, min(width, m)), dtype=X.dtype, device=X.device)
        for start in range(0, m, width):
            columns = slice(start, min(start + width, m))
            averages = scratch[:, : columns.stop - start]
            self._sum(averages, X[:, columns], others[:, columns])
            yield columns, averages

    def _sum(self, averages: Tensor, X: Tensor, others: Tensor) -> None:
        if self._matrix is not None:
            n = len(X)
            torch.mm(self._matrix[:, :n], X, out=averages)
            averages.addmm_(self._matrix[:, n:], others)
            return
        sources = X.unbind() + others.unbind()
        for average, ((first, weight), *rest) in zip(averages.unbind(), self._terms, strict=True):
            torch.mul(sources[first], weight, out=average)
            for source, weight in rest:
                average.add_(sources[source], alpha=weight)


def _matrix(terms: Terms, columns: int) -> Tensor:
    matrix = torch.zeros(len(terms), columns, dtype=torch.float64)
    for row, of_row in zip(matrix, terms, strict=True):
        for source, weight in of_row:
            row[source] = weight
    return matrix
