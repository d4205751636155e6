"""Which rows a mini-batch has, as a pure function of (seed, worker, draw)."""

from __future__ import annotations

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
        self._shuffled: dict[int, tuple[int, Tensor]] = {}  # worker -> its last epoch and that epoch's order

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
        epoch, position = divmod(draw.index, self._rows[i] // count)
        return self._order(i, epoch)[position * count : (position + 1) * count]

    def _order(self, i: int, epoch: int) -> Tensor:
        last, order = self._shuffled.get(i, (None, None))
        if order is None or last != epoch:
            generator = stream(self._share.seed, "batches", self._share.workers[i], epoch)
            order = torch.from_numpy(generator.permutation(self._rows[i])).to(self._share.device)
            self._shuffled[i] = (epoch, order)
        return order
