"""What sums of sparse vectors cost, in bytes and in seconds: pure functions, the same on every rank.

plan       what happens                                                  words of each rank
allgather  everybody gets everybody's entries and adds them up           2 (Σ own) (P − 1)/P
owner      the owner of a range gets its entries, adds them up, and      2 own off rank
           tells everybody                                               + 2 union (P − 1)/P
dense      an allreduce of d numbers, and of d bits for the union      2 d (P − 1)/P

The owner plan follows Ok-Topk (Li & Hoefler, PPoPP 2022); switching to dense, SparCML (Renggli et al., SC
2019). Symbols: N workers, n of them on a rank, P ranks, d entries, k of them sent by each worker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcopt.comm.ports import Exchange, allreduce_bytes, gather_bytes
from hpcopt.comm.sparse.selection import BITS, STEP_BYTES

EXCHANGES: tuple[Exchange, ...] = ("allgather", "owner", "dense")
LARGEST_INT32 = 2**31 - 1
ENTRY_SECONDS = 3e-8
"""to pack, add and merge one entry: measured here, only its order of magnitude matters"""
SAMPLES = 32
"""indices of each rank from which the owners' ranges are made"""
WORTH = 1.25
"""how much longer than the fastest a larger density may take: more entries mean fewer rounds"""


@dataclass(frozen=True)
class Shape:
    """What a sum is made of.

    Attributes:
        dim: d.
        workers: N.
        itemsize: bytes of a value.
        ordered: every worker's entries are added by themselves, in the order of the workers.
        selects: only the largest entries of the sum are kept.
    """

    dim: int
    workers: int
    itemsize: int
    ordered: bool = False
    selects: bool = False

    @property
    def record(self) -> np.dtype[np.void]:
        """An entry as it travels."""
        index = np.int32 if self.dim <= LARGEST_INT32 else np.int64
        return np.dtype([("index", index), ("value", f"f{self.itemsize}")])

    def chance(self, k: float, vectors: float) -> float:
        """How many different entries so many vectors of k entries have, if they coincide only by chance."""
        return self.dim * -math.expm1(vectors * math.log1p(-min(k / self.dim, 1 - 1e-15)))


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


def bytes_of(
    plan: str, shape: Shape, parts: int, own: float = 0, off_rank: float = 0, result: float = 0
) -> float:
    """Bytes that one of ``parts`` sends.

    Args:
        plan: one of `EXCHANGES`.
        shape: of the sum.
        parts: P.
        own: "allgather": entries that each has to give, on average.
        off_rank: "owner": entries that leave this one for their owners.
        result: "owner": entries of the sum.
    """
    entry = shape.record.itemsize
    if plan == "dense":
        return allreduce_bytes(shape.dim * shape.itemsize, parts) + allreduce_bytes(bits(shape.dim), parts)
    if plan == "allgather":
        return gather_bytes(round(own * parts * entry), parts)
    return off_rank * entry + gather_bytes(round(result * entry), parts)


def worker_cost(exchange: str, shape: Shape, k: int, result: int) -> tuple[float, float]:
    """Bytes and passes of a worker on a rank of its own: with the plan of fewest bytes, if it is "auto"."""
    off_rank = k * (shape.workers - 1) / shape.workers
    found: dict[str, float] = {
        plan: bytes_of(plan, shape, shape.workers, k, off_rank, result) for plan in EXCHANGES
    }
    if shape.selects:
        found["owner"] += selection_steps(shape) * allreduce_bytes(STEP_BYTES, shape.workers)
    plan = min(found, key=lambda plan: found[plan]) if exchange == "auto" else exchange
    return found[plan], float(plan == "dense")


def bits(dim: int) -> int:
    """Bytes that say for each of d entries whether somebody gave it."""
    return (dim + 7) // 8


def selection_steps(shape: Shape) -> int:
    """Histograms that a global selection sums, at the most."""
    return math.ceil(8 * shape.itemsize / BITS)


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
