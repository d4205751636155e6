"""Who puts to whom, and where that lies: the same table on every rank, made without communication."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from hpcopt.comm.ports import Full
from hpcopt.ground.placement import Placement

Pair = tuple[int, int]


@dataclass(frozen=True)
class Link:
    """From one worker to another.

    Attributes:
        origin, to: the workers.
        source, target: their ranks.
        place: its number among the links that reach the target from other ranks.
        back: its number among the links that leave the source for other ranks.
    """

    origin: int
    to: int
    source: int
    target: int
    place: int
    back: int

    @property
    def stays(self) -> bool:
        """Whether both workers live on one rank."""
        return self.source == self.target


class Links:
    """All links of a mailbox.

    Args:
        pairs: (origin, to); None: every worker to every worker, itself among them.
        placement: of the workers.

    Attributes:
        leaving: those of the workers here, by (origin, to).
        arriving: those to the workers here, by (origin, to).
        reaching, going: how many reach each rank from other ranks, and leave it for them.
    """

    def __init__(self, pairs: Iterable[Pair] | None, placement: Placement) -> None:
        everybody = range(placement.total)
        every = ((origin, to) for origin in everybody for to in everybody)
        self.reaching: Counter[int] = Counter()
        self.going: Counter[int] = Counter()
        self.leaving: dict[Pair, Link] = {}
        self.arriving: dict[Pair, Link] = {}
        owners = placement.owners.tolist()
        for origin, to in sorted(set(every if pairs is None else pairs)):
            source, target = owners[origin], owners[to]
            link = Link(origin, to, source, target, self.reaching[target], self.going[source])
            if not link.stays:
                self.reaching[target] += 1
                self.going[source] += 1
            if source == placement.rank:
                self.leaving[origin, to] = link
            if target == placement.rank:
                self.arriving[origin, to] = link


@dataclass(frozen=True)
class Lanes:
    """What a mailbox was opened for.

    Attributes:
        links: all of them.
        like: a vector as long as the longest, on the device of all of them.
        depth: K, entries of a link.
        full: see `hpcopt.comm.ports.Ports.mailbox`.
    """

    links: Links
    like: Tensor
    depth: int
    full: Full
