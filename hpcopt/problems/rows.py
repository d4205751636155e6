"""The rows of a data set that a worker has in memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import gcd, lcm
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hpcopt.math.flat import ALIGNMENT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from hpcopt.problems.base import Share
    from hpcopt.problems.data import Dataset, Partition, Split


@dataclass(frozen=True)
class Rows:
    """Features (r, …) in the dtype they are stored in, and targets (r, …), int64 for classes."""

    features: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.targets)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Both."""
        return self.features, self.targets

    def copy(self) -> Rows:
        """The same in memory of their own."""
        return Rows(self.features.clone(), self.targets.clone())

    def at(self, rows: Tensor | slice) -> Rows:
        """Some of the rows."""
        if isinstance(rows, slice):
            return Rows(self.features[rows], self.targets[rows])
        # a third of the time of self.features[rows]
        return Rows(self.features.index_select(0, rows), self.targets.index_select(0, rows))


@dataclass(frozen=True)
class WorkerRows:
    """A worker's rows.

    Attributes:
        train: its training rows.
        even_test: its slice of all test rows, for shared models; None if there are no test rows at all.
        own_test: test rows that are distributed like its training rows, for personal models.
    """

    train: Rows
    even_test: Rows | None
    own_test: Rows | None


def read_worker(data: Dataset, parts: Partition, worker: int, share: Share) -> WorkerRows:
    """Reads one worker's rows, and no others, onto the share's device."""
    train = read_rows(data.train, parts.train[worker], share)
    if data.test is None or parts.test is None:
        return WorkerRows(train, None, None)
    # a shared model is evaluated on all test rows, of which each worker takes an even, contiguous slice
    total = len(data.test)
    even = np.arange(worker * total // share.total, (worker + 1) * total // share.total)
    return WorkerRows(
        train, read_rows(data.test, even, share), read_rows(data.test, parts.test[worker], share)
    )


def pieces(rows: Rows, size: int) -> Iterator[Rows]:
    """The rows in order, ``size`` at a time."""
    if 0 < len(rows) <= size:
        yield rows
        return
    for start in range(0, len(rows), size):
        yield rows.at(slice(start, start + size))


def side_by_side(rows: Sequence[Rows]) -> Rows:
    """Equally many rows of several workers, (g, r, …); not copied where they lie at equal distances."""
    return Rows(*(_stacked(columns) for columns in zip(*(of.tensors for of in rows), strict=True)))


def standardised(features: Tensor, moments: tuple[float, float], dtype: torch.dtype) -> Tensor:
    """(features − mean) / std in ``dtype``.

    Integers that are not standardised (moments 0 and 1) and have 32 or 64 bits are indices, for embeddings,
    and stay as they are.
    """
    mean, std = moments
    if moments != (0.0, 1.0):
        return (features.to(dtype) - mean).div_(std)
    return features if features.dtype in (torch.int32, torch.int64) else features.to(dtype)


def read_rows(split: Split, numbers: np.ndarray[Any, np.dtype[np.int64]], share: Share) -> Rows:
    """Reads some rows, and no others, onto the share's device."""
    # torch.tensor copies: what numpy allocates is not aligned as `hpcopt.problems.base.row` wants it
    features = torch.tensor(split.read(numbers), device=share.device)
    targets = torch.tensor(split.labels[numbers], device=share.device)
    return Rows(features, targets.to(share.dtype) if targets.is_floating_point() else targets.long())


class Joined:
    """Rows of several workers in one tensor, so that mini-batches of many are cut at once.

    Every worker's begin at an aligned address (`hpcopt.problems.base.row`), for which there may be gaps.

    Args:
        lengths: how many rows each worker has.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = lengths
        self._rows: Rows | None = None
        self._starts: list[int] = []

    def put(self, i: int, rows: Rows) -> Rows:
        """Takes the rows of worker i (from 0 here), and gives them as they are here."""
        if self._rows is None:
            whole = lcm(*(ALIGNMENT // gcd(ALIGNMENT, max(1, _row_bytes(t))) for t in rows.tensors))
            room = [-(-length // whole) * whole for length in self._lengths]
            self._starts = [*accumulate(room, initial=0)]
            self._rows = Rows(*(t.new_empty(self._starts[-1], *t.shape[1:]) for t in rows.tensors))
        here = self._rows.at(slice(self._starts[i], self._starts[i] + len(rows)))
        for to, of in zip(here.tensors, rows.tensors, strict=True):
            to.copy_(of)
        return here

    def at(self, workers: Sequence[int], numbers: Tensor) -> Rows:
        """Some rows of several workers: features (g, B, …) and targets (g, B, …).

        Args:
            workers: from 0 here, (g,).
            numbers: which of its rows each of them gives, (g, B).
        """
        assert self._rows is not None
        starts = torch.tensor([self._starts[i] for i in workers], device=numbers.device)
        found = self._rows.at((numbers + starts[:, None]).reshape(-1))
        return Rows(*(t.view(*numbers.shape, *t.shape[1:]) for t in found.tensors))


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    first, second = tensors[0], tensors[min(1, len(tensors) - 1)]
    at, step = first.storage_offset(), second.storage_offset() - first.storage_offset()
    memory = first.untyped_storage().data_ptr()
    for k, one in enumerate(tensors):
        if one.untyped_storage().data_ptr() != memory or one.storage_offset() != at + k * step:
            return torch.stack(list(tensors))
    return first.as_strided((len(tensors), *first.shape), (step, *first.stride()))


def _row_bytes(tensor: Tensor) -> int:
    return tensor[:1].numel() * tensor.element_size()
