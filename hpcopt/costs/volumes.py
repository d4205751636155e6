"""Bytes that ranks send: the one place of the formulas that ports count by and predictions scale by.

Symbols: N workers, P ranks, d numbers of a vector, k entries of it that a worker gives, n workers on a rank.

what                            each of P parts sends
reduce-scatter, allgather       m (P − 1)/P, m bytes of the whole
allreduce                       2 m (P − 1)/P
allreduce in workers' order     as many, and m (P − 1)/P for each worker beyond the first
sparse sum, "allgather"         2 (Σ own) (P − 1)/P words: everybody gets everybody's entries and adds them up
sparse sum, "owner"             2 own off rank + 2 union (P − 1)/P words: who owns a range adds up, and tells
sparse sum, "dense"             an allreduce of d numbers, and of d bits for the union
average with neighbours         a row once to every rank that needs it (`rows_sent`); where all rows of W are
                                the same, an allreduce
mailbox                         a header and the vector

The owner plan follows Ok-Topk (Li & Hoefler, PPoPP 2022); switching to dense, SparCML (Renggli et al., SC
2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Exchange = Literal["auto", "allgather", "owner", "dense"]
EXCHANGES: tuple[Exchange, ...] = ("allgather", "owner", "dense")
LARGEST_INT32 = 2**31 - 1
BITS = 5
BINS = 1 << BITS
"""of a histogram that a global selection sums in every step"""
STEP_BYTES = BINS * 8
PARCEL_HEADER = 64
"""bytes that travel before a vector that is put into a mailbox"""
Numbers = NDArray[np.int64]


def gather_bytes(nbytes: float, parts: int) -> float:
    """Bytes that each of ``parts`` sends in a reduce-scatter or an allgather of ``nbytes`` in all."""
    return nbytes * (parts - 1) / parts


@lru_cache  # asked for twice in every sum, of which the small ones take microseconds
def allreduce_bytes(nbytes: float, parts: int) -> float:
    """Bytes that each of ``parts`` sends in an allreduce of ``nbytes``."""
    return 2 * gather_bytes(nbytes, parts)


def ordered_bytes(nbytes: float, parts: int, here: float) -> float:
    """Bytes that one of ``parts`` with ``here`` workers sends in a sum in the order of the workers."""
    return allreduce_bytes(nbytes, parts) + (here - 1) * gather_bytes(nbytes, parts)


@dataclass(frozen=True)
class Shape:
    """What a sum of sparse vectors is made of.

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


def sparse_bytes(
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
        plan: sparse_bytes(plan, shape, shape.workers, k, off_rank, result) for plan in EXCHANGES
    }
    if shape.selects:
        found["owner"] += selection_bytes(selection_steps(shape), shape.workers)
    plan = min(found, key=lambda plan: found[plan]) if exchange == "auto" else exchange
    return found[plan], float(plan == "dense")


def bits(dim: int) -> int:
    """Bytes that say for each of d entries whether somebody gave it."""
    return (dim + 7) // 8


def selection_steps(shape: Shape) -> int:
    """Histograms that a global selection sums, at the most."""
    return math.ceil(8 * shape.itemsize / BITS)


def selection_bytes(steps: int, parts: int) -> float:
    """Bytes that each of ``parts`` sends in so many steps of a global selection."""
    return steps * allreduce_bytes(STEP_BYTES, parts)


def rows_sent(W: csr_array, owners: Numbers, hosts: Numbers | None = None) -> Numbers:
    """Rows that each rank sends in X ← W X, (P,): each once to every rank that needs it.

    Args:
        W: (N, N); i needs the row of j where W_ij ≠ 0.
        owners: the rank of every worker, (N,).
        hosts: of every rank, (P,): only rows that leave their host are counted.
    """
    i, j, _ = entries(W)
    where = owners if hosts is None else hosts[owners]
    leaves = where[i] != where[j]
    pairs = np.unique(owners[i[leaves]] * W.shape[0] + j[leaves])
    return np.bincount(owners[pairs % W.shape[0]], minlength=int(owners.max(initial=0)) + 1)


def entries(W: csr_array) -> tuple[Numbers, Numbers, NDArray[np.float64]]:
    """i, j and W_ij of all W_ij ≠ 0, by i and then by j."""
    i = np.repeat(np.arange(W.shape[0]), np.diff(W.indptr))
    kept = W.data != 0
    i, j, w = i[kept], W.indices[kept].astype(np.int64), W.data[kept]
    order = np.lexsort((j, i))
    return i[order], j[order], w[order]


def parcel_bytes(nbytes: float) -> float:
    """Bytes that travel for a vector that is put into a mailbox."""
    return PARCEL_HEADER + nbytes
