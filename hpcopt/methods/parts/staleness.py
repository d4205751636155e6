"""How late what is applied is: counted where it is applied, told by worker."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hpcopt.comm.ports import Reducer
from hpcopt.problems.base import Share
from hpcopt.state import Group


class Staleness:
    """Counts of what happens on this rank.

    Args:
        share: the workers here.
        bins: the last one counts all that is later, too.
    """

    def __init__(self, share: Share, bins: int) -> None:
        self._share, self._counts = share, torch.zeros(share.total, bins, dtype=torch.int64)

    def add(self, worker: int, staleness: float, count: int = 1) -> None:
        """Counts something of a worker's, late by a whole number or, if several were added up, a mean."""
        count_late(self._counts, worker, staleness, count)

    def take(self, reduce: Reducer) -> Tensor:
        """The counts of all ranks since the last call, (N, bins) int64. Collective."""
        share = self._share
        own = torch.zeros(share.n, self._counts.numel(), dtype=share.dtype, device=share.device)
        own[0] = self._counts.flatten()
        total = reduce.scalars(own).reshape(self._counts.shape).to(self._counts)
        self._counts.zero_()
        return total


def count_late(counts: Tensor, worker: int, staleness: float, count: int = 1) -> None:
    """Counts something of a worker's in (N, bins), see `Staleness.add`."""
    counts[worker, min(int(staleness + 0.5), counts.shape[1] - 1)] += count


def mean_staleness(version: int, stamps: int, count: int) -> float:
    """The mean of gradients that are applied at once, as if it were one by one.

    Args:
        version: gradients that were applied before.
        stamps: the sum of the versions that they are of.
        count: how many.
    """
    return version + (count - 1) / 2 - stamps / count


def summary(counts: Tensor) -> dict[str, float]:
    """The mean, the 95th percentile and the largest; 0 where nothing was counted. ``counts`` is (N, bins)."""
    every = counts.sum(0).numpy()
    total, delays = every.sum(), np.arange(len(every))
    if not total:
        return {"staleness_mean": 0.0, "staleness_p95": 0.0, "staleness_max": 0.0}
    return {
        "staleness_mean": float(every @ delays / total),
        "staleness_p95": float(np.argmax(np.cumsum(every) >= 0.95 * total)),
        "staleness_max": float(np.flatnonzero(every)[-1]),
    }


def groups(counts: Tensor) -> dict[str, Group]:
    """The counts to record, of all workers together and of each. ``counts`` is (N, bins)."""
    bins = counts.shape[1]
    return {
        "staleness": Group(("delay",), {"count": counts.sum(0).numpy()}, capacity=bins),
        "staleness_by_worker": Group(("delay", "origin"), {"count": counts.T.numpy().copy()}, capacity=bins),
    }
