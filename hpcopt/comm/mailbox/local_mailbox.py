"""The in-process twin of the `Mailbox` port, with delays by script."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from hpcopt.comm.mailbox.links import Links, Pair
from hpcopt.comm.ports import Agreed, Counter, Full, Mail, Receive
from hpcopt.costs.volumes import parcel_bytes
from hpcopt.ground.placement import Placement

Delay = Callable[[int, int, int], int]


@dataclass
class Parcel:
    """One or several vectors; ``due``: before which `collect` it arrives."""

    number: int
    stamp: int
    stamps: int
    vector: Tensor
    count: int = 1
    due: int = 0

    def meet(self, vector: Tensor, stamp: int, full: Full) -> None:
        """One more vector, where no other can be sent."""
        self.count += 1
        self.stamps += stamp
        if full == "add":
            self.vector.add_(vector)
        else:
            self.vector.copy_(vector)
            self.stamp = stamp


@dataclass
class Line:
    """One link: what is under way, what waits, and counts of puts."""

    under_way: deque[Parcel] = field(default_factory=deque)
    waiting: Parcel | None = None
    puts: int = 0
    collected: int = 0


class LocalMailbox:
    """`Mailbox` for one process that holds all workers.

    Args:
        workers: N.
        like: a vector as long as the longest.
        links: (origin, to); None: all.
        depth: K.
        delay: (origin, to, number) -> how many calls of `collect` do not find it yet, once it is under way;
            it never overtakes another of its link. None: the next one finds it.
        full: see `hpcopt.comm.ports.Ports.mailbox`.
        wish: see `hpcopt.comm.ports.Ports`.
        receive: see `Mailbox`; called in `collect`.
    """

    transport = "local"

    def __init__(
        self,
        workers: int,
        like: Tensor,
        links: Iterable[Pair] | None = None,
        depth: int = 4,
        delay: Delay | None = None,
        full: Full = "add",
        wish: Callable[[], int] = lambda: 0,
        receive: Receive | None = None,
    ) -> None:
        self._size, self._depth, self._delay = len(like), depth, delay
        self._full, self._wish, self._receive = full, wish, receive
        self._lines = {pair: Line() for pair in Links(links, Placement.even(workers)).leaving}
        self._calls = 0
        self.counter, self.merged, self.busy = Counter(), 0, 0.0

    def put(self, origin: int, to: int, vector: Tensor, stamp: int) -> None:
        """See `Mailbox`."""
        start, line = time.perf_counter(), self._lines[origin, to]
        assert len(vector) <= self._size
        if line.waiting is not None:
            line.waiting.meet(vector, stamp, self._full)
            self.merged += 1
        else:
            line.waiting = Parcel(line.puts, stamp, stamp, vector.clone())
            self._send((origin, to), line)
        line.puts += 1
        self.counter.add(start, 0.0, 0.0, vector.nbytes)

    def collect(self) -> list[Mail]:
        """See `Mailbox`."""
        start, mail = time.perf_counter(), []
        call = self._calls
        self._calls += 1
        for (origin, to), line in self._lines.items():
            while line.under_way and line.under_way[0].due <= call:
                one = line.under_way.popleft()
                line.collected += one.count
                mail.append(Mail(origin, to, one.number, one.count, one.stamp, one.stamps, one.vector))
            self._send((origin, to), line)
        self.counter.seconds += time.perf_counter() - start
        if self._receive is None:
            return mail
        for arrived in mail:
            self._receive(arrived)
        return []

    def collected(self, origin: int, to: int) -> int:
        """See `Mailbox`."""
        return self._lines[origin, to].collected

    def agree(self, made: int, goal: int) -> Agreed | None:
        """See `Mailbox`."""
        agreed = Agreed(made, self._wish())
        return agreed if made >= goal or agreed.wish else None

    def pause(self) -> None:
        """See `Mailbox`."""
        for pair, line in self._lines.items():
            self._send(pair, line, however_many=True)
            for one in line.under_way:
                one.due = self._calls

    def free(self) -> None:
        """See `Mailbox`."""

    def _send(self, pair: Pair, line: Line, however_many: bool = False) -> None:
        """Sends what waits, if there is room."""
        one = line.waiting
        if one is None or (len(line.under_way) >= self._depth and not however_many):
            return
        one.due = self._calls + (self._delay(*pair, one.number) if self._delay else 0)
        line.under_way.append(one)
        line.waiting = None
        self.counter.bytes_workers += parcel_bytes(one.vector.nbytes) * (pair[0] != pair[1])
