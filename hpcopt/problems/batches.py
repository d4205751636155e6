"""Which rows a mini-batch has, as a pure function of (seed, worker, draw)."""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import torch

from hpcopt.math.streams import stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from hpcopt.problems.base import Draw, Share


def sizes(rows: Iterable[int], size: int | Literal["full"]) -> list[tuple[int, int]]:
    """Of workers with so many rows, these and how many of them are in a mini-batch of ``size``."""
    return [(of, of if size == "full" else min(size, of)) for of in rows]


class Batches:
    """The mini-batches of the workers here.

    A worker goes through its rows in an order shuffled anew for each epoch. The rows that are left over where
    the batch size does not divide the rows are skipped in that epoch.

    Attributes:
        size: rows per mini-batch, or ``"full"``.
    """

    def __init__(self, share: Share, rows: Sequence[int], size: int | Literal["full"]) -> None:
        """Prepares the sampler.

        Args:
            share: the workers here.
            rows: the training rows of each of them, (n,).
            size: rows per mini-batch and worker; ``"full"``, or at least a worker's rows: all of them.
        """
        self.size = size
        self._share = share
        self._rows = list(rows)
        self._starts = [*accumulate(self._rows, initial=0)]
        self._epochs = [-1] * len(self._rows)  # that each worker's order is of

    def count(self, i: int, draw: Draw | None) -> int:
        """How many rows worker i (from 0 here) uses in a draw."""
        size = self.size if draw is None or draw.rows is None else draw.rows
        if draw is None or size == "full":
            return self._rows[i]
        return min(size, self._rows[i])

    def select(self, i: int, draw: Draw | None) -> Tensor | None:
        """The rows of worker i in a draw, (count,) int64 on the share's device; None: all, in their order."""
        count = self.count(i, draw)
        if draw is None or count == self._rows[i]:
            return None
        at = self._place(i, draw, count)
        return self._orders[at : at + count].clone()  # the next epoch overwrites it

    def alike(self, i: int, draw: Draw | None) -> tuple[int, bool]:
        """Workers of which this is the same can be in one call of `together`."""
        count = self.count(i, draw)
        return count, count == self._rows[i]

    def together(self, workers: Sequence[int], draw: Draw | None) -> Tensor:
        """The rows of several workers that are `alike`, (g, count) int64 on the share's device."""
        count, every = self.alike(workers[0], draw)
        ahead = torch.arange(count, device=self._share.device)
        if draw is None or every:
            return ahead.expand(len(workers), -1)
        places = torch.tensor([self._place(i, draw, count) for i in workers], device=self._share.device)
        return self._orders[places[:, None] + ahead]

    @cached_property
    def _orders(self) -> Tensor:
        """The workers' rows in the order of their epochs, one worker after the other."""
        return torch.empty(self._starts[-1], dtype=torch.int64, device=self._share.device)

    def _place(self, i: int, draw: Draw, count: int) -> int:
        """Where in the orders a mini-batch begins."""
        epoch, position = divmod(draw.index, self._rows[i] // count)
        if self._epochs[i] != epoch:
            generator = stream(self._share.seed, "batches", self._share.workers[i], epoch)
            order = torch.from_numpy(generator.permutation(self._rows[i]))
            self._orders[self._starts[i] : self._starts[i + 1]] = order
            self._epochs[i] = epoch
        return self._starts[i] + position * count
