"""What one use of a port makes travel on any number of ranks and hosts: the counters of a run, scaled.

Bytes are those of `hpcopt.costs.volumes`: within a host as if it were alone, between hosts as if each were
one rank. Messages that wait for each other are ⌈log₂ H⌉, in a ring H − 1, for a reduce-scatter or an
allgather, and twice as many for an allreduce.

Symbols: N workers, P ranks, H hosts, L ranks of a host, m bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from hpcopt.costs import volumes
from hpcopt.costs.volumes import Shape, allreduce_bytes, gather_bytes
from hpcopt.errors import UserError
from hpcopt.ground.placement import Placement, sizes

RING_ELEMENTS = 1 << 14
"""shorter sums never take the ring: its latency of 2(M − 1) steps costs more than the bytes that it saves"""


@dataclass(frozen=True)
class Layout:
    """N workers on P ranks on H hosts, all in blocks; the last C ranks host none.

    Attributes:
        ranks, hosts, workers: P, H, N.
        beside: C.
        work: of each worker in a round, (N,), if ranks have about equal work; else equal numbers of workers.
    """

    ranks: int
    hosts: int
    workers: int
    beside: int = 0
    work: tuple[int, ...] = ()

    @property
    def hosting(self) -> int:
        """Ranks with workers."""
        return self.ranks - self.beside

    @property
    def within(self) -> int:
        """L, of the fullest host."""
        return -(-self.ranks // self.hosts)

    @property
    def fullest(self) -> int:
        """Workers of the fullest rank."""
        return max(self.placement.counts)

    @cached_property
    def heaviest(self) -> float:
        """The work of the rank with most of it, in workers of average work."""
        if not sum(self.work):
            return self.fullest
        blocks = (sum(self.work[a:b]) for a, b in pairwise(self.placement.starts))
        return self.workers * max(blocks) / sum(self.work)

    @cached_property
    def placement(self) -> Placement:
        """Which ranks host which workers."""
        if self.work:
            return Placement.balanced(self.work, self.hosting)
        return Placement.even(self.workers, self.hosting)

    @property
    def owners(self) -> volumes.Numbers:
        """The rank of every worker, (N,)."""
        return self.placement.owners

    @property
    def host_of(self) -> volumes.Numbers:
        """The host of every rank, (P,)."""
        return np.repeat(np.arange(self.hosts), sizes(self.ranks, self.hosts))


Rows = Callable[[Layout], tuple[float, float, float] | None]
"""rows that leave the fullest rank and the fullest host, and all that leave their rank; None: none do, for
all workers get the same average, which is a sum"""


@dataclass(frozen=True)
class Traffic:
    """Of one use, within a host or between hosts.

    Attributes:
        hops: messages one after the other.
        pieces: messages in all that the fullest end sends.
        nbytes: that leave it (within: a rank; between: a host).
    """

    hops: float = 0.0
    pieces: float = 0.0
    nbytes: float = 0.0

    @property
    def piece(self) -> float:
        """Bytes of a message."""
        return self.nbytes / self.pieces if self.pieces else 0.0

    def times(self, calls: float) -> Traffic:
        """Of so many uses."""
        return Traffic(self.hops * calls, self.pieces * calls, self.nbytes * calls)


@dataclass(frozen=True)
class Travel:
    """One use of a port.

    Attributes:
        within, between: the slowest way within a host and between two.
        sent: bytes that a rank with workers sends, on average, as counters count them.
        worked: bytes that the fullest rank copies or adds up, in units of what it hands over.
    """

    within: Traffic
    between: Traffic
    sent: float
    worked: float


@dataclass(frozen=True)
class Work:
    """What one use of a port has to do, whatever the ranks; of a run's counters.

    Attributes:
        kind: "sum", "scatter", "gather", "scalars", "slices", "sparse", "neighbours" or "mailbox".
        nbytes: dense: of the whole vector; sparse: of a worker's entries; else of a worker's vector.
        ring: long dense sums take the ring.
        itemsize: bytes of a number.
        ordered: sums are in the order of the workers.
        exchange: of a sparse sum.
        dim: d, of a sparse sum.
        selects: of a sparse sum: only the largest entries are kept.
        rows: of neighbours and mail.
    """

    kind: str
    nbytes: float
    ring: bool = False
    itemsize: int = 8
    ordered: bool = False
    exchange: str = "allgather"
    dim: int = 0
    selects: bool = False
    rows: Rows | None = field(default=None, compare=False)

    @property
    def verb(self) -> str:
        """What measured points of it are called."""
        others = {"scalars": "sum", "slices": "sum", "mailbox": "neighbours"}
        return f"sparse {self.exchange}" if self.kind == "sparse" else others.get(self.kind, self.kind)


def travel(work: Work, on: Layout) -> Travel:
    """What one use makes travel there."""
    if work.kind == "sparse":
        return _sparse(work, on)
    if work.kind in ("neighbours", "mailbox"):
        return _rows(work, on)
    return _dense(work, on)


def _dense(work: Work, on: Layout) -> Travel:
    half = work.kind in ("scatter", "gather")
    m, share = work.nbytes, gather_bytes if half else allreduce_bytes
    sent = share(m, on.hosting)
    if work.ordered and not half:
        sent += (on.workers / on.hosting - 1) * gather_bytes(m, on.hosting)
    ring = work.ring and m >= RING_ELEMENTS * work.itemsize

    def of(parts: int, nbytes: float, ring: bool) -> Traffic:
        hops = (parts - 1 if ring else math.ceil(math.log2(parts))) * (1 if half else 2)
        return Traffic(hops, hops, nbytes)

    rows = on.fullest if work.ordered else 1
    within = of(on.within, rows * share(m, on.within), False)
    between = of(on.hosts, rows * share(m, on.hosts), ring)
    return Travel(within, between, sent, m)


def _sparse(work: Work, on: Layout) -> Travel:
    """By a plan; entries of different workers coincide by chance alone."""
    shape = Shape(work.dim, on.workers, work.itemsize, work.ordered, work.selects)
    entry = shape.record.itemsize
    k = work.nbytes / entry
    per_rank = on.workers / on.hosting
    own = k * per_rank if work.ordered else shape.chance(k, per_rank)
    result = k if work.selects else shape.chance(k, on.workers)
    P, H, L = on.hosting, on.hosts, on.within
    off = own * (P - 1) / P
    sent = volumes.sparse_bytes(work.exchange, shape, P, own, off, result)
    rounds = {"allgather": 1, "owner": 5, "dense": 4}[work.exchange]

    def of(parts: int, nbytes: float) -> Traffic:
        hops = rounds * math.ceil(math.log2(parts))
        return Traffic(hops, hops, nbytes)

    leaving = volumes.sparse_bytes(work.exchange, shape, H, own * L, own * L * (H - 1) / H, result)
    inside = volumes.sparse_bytes(work.exchange, shape, L, own, own * (L - 1) / L, result)
    return Travel(of(L, inside), of(H, leaving), sent, (own * P + result) * entry)


def _rows(work: Work, on: Layout) -> Travel:
    assert work.rows is not None
    if (rows := work.rows(on)) is None:
        return replace(_dense(work, on), worked=on.fullest * work.nbytes)
    of_rank, of_host, everybody = rows
    sent = everybody / on.hosting * work.nbytes
    within = Traffic(float(of_rank > 0), of_rank, of_rank * work.nbytes) if on.within > 1 else Traffic()
    between = Traffic(float(of_host > 0), of_host, of_host * work.nbytes)
    return Travel(within, between, sent, on.fullest * work.nbytes)


# --- who needs whose rows -----------------------------------------------------------------------------------


def gossip(topology: str, weights: str, **options: Any) -> Rows:
    """See `Rows`; on average over the rounds."""

    @lru_cache
    def rows(on: Layout) -> tuple[float, float, float] | None:
        from hpcopt.math.mixing import mixing

        try:
            mixes = mixing(topology, weights, on.workers, **options)
        except ImportError as error:
            raise UserError(f'topologies need {error.name}: pip install "hpcopt[run]"') from error
        if mixes.common is not None:
            return None
        hosts = on.host_of
        found = []
        for W in mixes.matrices:
            each = volumes.rows_sent(W, on.owners)
            across = volumes.rows_sent(W, on.owners, hosts)
            of_hosts = np.bincount(hosts[: len(across)], weights=across)
            found.append((each.max(initial=0), of_hosts.max(initial=0), each.sum()))
        a, b, c = np.mean(np.array(found, dtype=float), axis=0).tolist()
        return a, b, c

    return rows


def everybody(on: Layout) -> tuple[float, float, float]:
    """The same of mail, where every worker puts a vector to any other one."""
    leaves, crosses = (on.hosting - 1) / on.hosting, (on.hosts - 1) / on.hosts
    return on.fullest * leaves, on.within * on.fullest * crosses, on.workers * leaves
