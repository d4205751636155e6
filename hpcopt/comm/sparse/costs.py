"""What sums of sparse vectors cost in seconds: pure functions, the same on every rank.

Their plans and bytes are in `hpcopt.costs.volumes`. Symbols: N workers, n of them on a rank, P ranks, d
entries, k of them sent by each worker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcopt.costs.volumes import EXCHANGES, Shape, gather_bytes, selection_steps

ENTRY_SECONDS = 3e-8
"""to pack, add and merge one entry: measured here, only its order of magnitude matters"""
SAMPLES = 32
"""indices of each rank from which the owners' ranges are made"""
WORTH = 1.25
"""how much longer than the fastest a larger density may take: more entries mean fewer rounds"""


@dataclass(frozen=True)
class Costs:
    """What was measured on some ranks, once.

    Attributes:
        ranks: P.
        latency: of a small allgather [s].
        bandwidth: bytes per second that each rank sends in a large one.
        dense: seconds of a dense sum, per entry.
        select: seconds to find the largest entries, per entry.
    """

    ranks: int
    latency: float
    bandwidth: float
    dense: float
    select: float

    def exchange(self, plan: str, shape: Shape, k: int, result: float) -> float:
        """Predicted seconds of a sum; ``result``: how many entries it will have."""
        hosted = math.ceil(shape.workers / self.ranks)
        own = hosted * k if shape.ordered else min(shape.chance(k, hosted), result)
        if plan == "dense":
            return self.dense * shape.dim
        entry, hops = shape.record.itemsize, math.ceil(math.log2(self.ranks))
        if plan == "allgather":
            nbytes = gather_bytes(round(own * self.ranks * entry), self.ranks)
            return self.latency * hops + nbytes / self.bandwidth + own * self.ranks * ENTRY_SECONDS
        nbytes = gather_bytes(round((own + result) * entry), self.ranks)
        # lengths, samples, entries, and the result's lengths and entries
        calls = 5 + (1 + selection_steps(shape) if shape.selects else 0)
        return self.latency * calls * hops + nbytes / self.bandwidth + (2 * own + result) * ENTRY_SECONDS

    def fastest(self, shape: Shape, k: int, result: float) -> str:
        """The plan that is predicted to be fastest."""
        return min(EXCHANGES, key=lambda plan: self.exchange(plan, shape, k, result))

    def affordable(self, shape: Shape, densities: Sequence[float]) -> float:
        """See `SparseSum.affordable`."""
        dense = self.exchange("dense", shape, shape.dim, shape.dim)
        selection = self.select * shape.dim * math.ceil(shape.workers / self.ranks)
        seconds = {1.0: dense}
        for density in densities:
            if density < 1:
                k = max(1, round(density * shape.dim))
                result = shape.chance(k, shape.workers)
                plan = self.fastest(shape, k, result)
                entries = math.ceil(shape.workers / self.ranks) * k * ENTRY_SECONDS
                seconds[density] = selection + entries + self.exchange(plan, shape, k, result)
        bound = min(WORTH * min(seconds.values()), dense)
        return max(density for density, time in seconds.items() if time <= bound)


def sample(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """`SAMPLES` of some indices, (n,) ascending, at equal distances."""
    if not len(indices):
        return np.zeros(SAMPLES, np.int64)
    at = (np.arange(SAMPLES) + 0.5) * len(indices) / SAMPLES
    return indices[at.astype(np.int64)].astype(np.int64)


def bounds(samples: NDArray[np.int64], parts: int, dim: int) -> NDArray[np.int64]:
    """Where the owners' ranges begin and end, (parts + 1,): all own about as many of the samples."""
    ordered = np.sort(samples, axis=None)
    inner = ordered[np.arange(1, parts) * len(ordered) // parts]
    return np.concatenate([[0], inner, [dim]])
