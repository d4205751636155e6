"""Weighted averages of rows, in place.

An average is given by its terms (k, w): the sum of w times row k of X, or row k - n of other rows for k ≥ n.
Terms are added one after the other, element by element, so that an average has the same bits wherever its
rows lie. Where averages have many terms a product of matrices is faster, for those who do not need that.

Symbols: n rows here, m columns, r other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

Terms = Sequence[Sequence[tuple[int, float]]]
"""for each of the n averages its terms, at least one"""

CHUNK_BYTES = 1 << 19
"""of all rows that are worked on at once, so that they stay in the cache of a core"""
FEWEST_COLUMNS = 1 << 10
"""that are worked on at once, so that the work outweighs the calls"""
GPU_COLUMNS, GPU_ELEMENTS = 1 << 13, 1 << 24
"""columns and elements that are worked on at once on a GPU, where few large kernels are better"""
MANY_TERMS = 16
FILLED = 1 / 4
"""of a matrix, from where on a dense product is faster"""


class Averages:
    """The averages that replace n rows.

    Args:
        terms: of each row's average.
        others: r.
        like: a tensor of the rows' dtype, on their device.
        ordered: always term by term.
    """

    def __init__(self, terms: Terms, others: int, like: Tensor, ordered: bool = True) -> None:
        rows, entries = len(terms), sum(map(len, terms))
        self._sum: Callable[[Tensor, Tensor], Tensor]
        if not ordered and entries > max(MANY_TERMS * rows, FILLED * rows * (rows + others)):
            self._sum = _Dense(terms, others, like)
        elif like.device.type == "cpu":
            self._sum = _Sparse(terms, others, like)
        else:
            self._sum = _TermByTerm(terms)

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
        width = _width(len(X) + len(others), X)
        for start in range(0, X.shape[1], width):
            columns = slice(start, min(start + width, X.shape[1]))
            yield columns, self._sum(X[:, columns], others[:, columns])


class _TermByTerm:
    def __init__(self, terms: Terms) -> None:
        self._terms = terms

    def __call__(self, X: Tensor, others: Tensor) -> Tensor:
        averages = torch.empty_like(X)
        sources = X.unbind() + others.unbind()
        for average, ((first, weight), *rest) in zip(averages.unbind(), self._terms, strict=True):
            torch.mul(sources[first], weight, out=average)
            for source, weight in rest:
                average.add_(sources[source], alpha=weight)
        return averages


class _Sparse:
    """Term by term in one call: SciPy's product goes through a row's entries in the order that they have."""

    def __init__(self, terms: Terms, others: int, like: Tensor) -> None:
        every = [term for of_row in terms for term in of_row]
        values = np.array([weight for _, weight in every], dtype=like[:0].numpy().dtype)
        sources = np.array([source for source, _ in every], dtype=np.int64)
        ends = np.cumsum([0, *map(len, terms)])
        self._matrix = csr_array((values, sources, ends), shape=(len(terms), len(terms) + others))

    def __call__(self, X: Tensor, others: Tensor) -> Tensor:
        return torch.from_numpy(self._matrix @ np.concatenate([X.numpy(), others.numpy()]))


class _Dense:
    def __init__(self, terms: Terms, others: int, like: Tensor) -> None:
        matrix = torch.zeros(len(terms), len(terms) + others, dtype=torch.float64)
        for row, of_row in zip(matrix, terms, strict=True):
            for source, weight in of_row:
                row[source] = weight
        self._own, self._others = matrix.to(like).split([len(terms), others], dim=1)

    def __call__(self, X: Tensor, others: Tensor) -> Tensor:
        return torch.mm(self._own, X).addmm_(self._others, others)


def _width(rows: int, X: Tensor) -> int:
    if X.device.type == "cpu":
        return max(FEWEST_COLUMNS, CHUNK_BYTES // X.element_size() // max(rows, 1))
    return max(GPU_COLUMNS, GPU_ELEMENTS // max(rows, 1))
