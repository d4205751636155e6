"""Sparse rows in a new order, in bounded memory: through a file with a place for each window of new rows."""

from __future__ import annotations

from itertools import pairwise
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from hpcopt.errors import UserError
from hpcopt.problems.data.columns import fill

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from hpcopt.problems.data.svmlight import Block

WINDOW = 1 << 20  # numbers that are put in order in memory


class Shuffle:
    """Reads rows as they come, and gives them in the order wanted.

    Attributes:
        starts: the first number of every new row, and of how many, (rows + 1,).
    """

    def __init__(
        self,
        name: str,
        lengths: NDArray[np.int64],
        order: NDArray[np.int64],
        cut: int,
        pair: np.dtype[Any],
    ) -> None:
        """Plans.

        Args:
            name: the file's, for messages.
            lengths: numbers in each row, (rows,).
            order: which row becomes the first, the second, …, (rows,).
            cut: a new row at which a window begins.
            pair: the dtype of a number with its "index" and "value".
        """
        self._name, self._lengths, self._order, self._pair = name, lengths, order, pair
        self.starts = starts_of(lengths[order])
        full = np.flatnonzero(np.diff(self.starts[:-1] // WINDOW)) + 1
        self._edges = np.unique(np.concatenate([[0, cut, len(order)], full]))

    def scatter(self, blocks: Iterable[Block], file: IO[bytes]) -> Iterator[int]:
        """Writes every row to its window's place in an empty file; yields how many rows each block had.

        Raises:
            UserError: the rows are not those that were planned for.
        """
        window = np.empty(len(self._order), np.int64)
        window[self._order] = np.repeat(np.arange(len(self._edges) - 1), np.diff(self._edges))
        free = self.starts[self._edges[:-1]].copy()
        done = 0
        for block in blocks:
            here = slice(done, done + len(block.lengths))
            if not np.array_equal(self._lengths[here], block.lengths):
                raise UserError(f"{self._name}: changed while it was read")
            self._put(block, window[here], free, file)
            done = here.stop
            yield len(block.lengths)
        if done != len(self._order):
            raise UserError(f"{self._name}: changed while it was read")

    def _put(self, block: Block, window: NDArray[np.int64], free: NDArray[np.int64], file: IO[bytes]) -> None:
        """Appends each row to what its window has already; ``free`` (windows,) is where that ends."""
        by_window = np.argsort(window, kind="stable")
        pairs = np.empty(len(block.values), self._pair)
        pairs["index"], pairs["value"] = block.indices, block.values
        lengths = block.lengths[by_window]
        pairs = pairs[spans(starts_of(block.lengths)[by_window], lengths)]
        used, first = np.unique(window[by_window], return_index=True)
        ends = starts_of(lengths)[np.append(first, len(lengths))].tolist()
        for target, (start, stop) in zip(used.tolist(), pairwise(ends), strict=True):
            file.seek(int(free[target]) * self._pair.itemsize)
            file.write(pairs[start:stop].view(np.uint8).data)
            free[target] += stop - start

    def windows(self, file: IO[bytes]) -> Iterator[tuple[int, int, NDArray[Any]]]:
        """The first and the last (excluded) new row of every window, and their numbers in order."""
        for start, stop in pairwise(self._edges.tolist()):
            file.seek(int(self.starts[start]) * self._pair.itemsize)
            pairs = np.empty(int(self.starts[stop] - self.starts[start]), self._pair)
            fill(file, pairs.view(np.uint8).data)
            rows = self._order[start:stop]
            arrived = np.argsort(rows)  # rows lie there as they lay in the source
            begins = np.empty(len(rows), np.int64)
            begins[arrived] = starts_of(self._lengths[rows[arrived]])[:-1]
            yield start, stop, pairs[spans(begins, self._lengths[rows])]


def starts_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, l_0, l_0 + l_1, …, (rows + 1,)."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def spans(begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """begins_0, begins_0 + 1, … (lengths_0 of them), begins_1, …: where the numbers of some rows lie."""
    starts = starts_of(lengths)
    return np.repeat(begins - starts[:-1], lengths) + np.arange(starts[-1])
