"""What becomes of vectors between `put` and `collect`: queues, merging and counts, whatever carries them.

Two threads share it: the computing one calls `put` and `collect`, which make no MPI call, the other `turn`.
One thread at a time calls `put`, and one `collect`: where vectors are received at once, that may be the
other.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hpcopt.comm.mailbox.links import Lanes, Link
from hpcopt.comm.mailbox.parcel import BYTES, COUNT, NUMBER, STAMP, STAMPS, Parcel
from hpcopt.comm.ports import Counter, Mail
from hpcopt.comm.staging import Staging


class Wire(Protocol):
    """What carries parcels between ranks: `hpcopt.comm.mailbox.windows`, `hpcopt.comm.mailbox.messages`.

    Attributes:
        told: by the targets of the links that leave, as of the last `arrived`: entries that are free again,
            puts that were collected, (links, 2), a row for each `Link.back`.
    """

    told: NDArray[np.int64]

    def send(self, link: Link, parcel: Parcel) -> None:
        """Sends a parcel off to an entry that is free."""

    def sent(self) -> list[Parcel]:
        """Parcels that have left."""

    def arrived(self) -> list[int]:
        """The `Link.place` of links of which the next entry is there."""

    def read(self, place: int, parcel: Parcel) -> None:
        """Copies the next entry of such a link."""

    def tell(self, link: Link, free: int, collected: int) -> None:
        """Tells the source of a link."""

    def idle(self) -> bool:
        """Whether all that was sent and told has arrived."""

    def free(self) -> None:
        """Frees what it holds. Collective."""


@dataclass(eq=False)
class Leaving:
    """A link as its source sees it: puts made; entries filled, of these free again; puts collected."""

    link: Link
    waiting: deque[Parcel] = field(default_factory=deque)
    puts: int = 0
    filled: int = 0
    free: int = 0
    collected: int = 0


@dataclass(eq=False)
class Arriving:
    """A link as its target sees it: entries read, of these collected; puts collected; what it told."""

    link: Link
    read: int = 0
    emptied: int = 0
    collected: int = 0
    told: tuple[int, int] = (0, 0)


class Post:
    """The queues of one rank.

    Args:
        lanes: what is carried.
        wire: what carries parcels to other ranks.
        staging: how GPU tensors reach host memory.

    Attributes:
        merged: puts that met one that waited.
        counter: of the port.
    """

    def __init__(self, lanes: Lanes, wire: Wire, staging: Staging) -> None:
        self._like, self._depth, self._full = lanes.like, lanes.depth, lanes.full
        self._wire, self._staging, links = wire, staging, lanes.links
        self._leaving = {pair: Leaving(link) for pair, link in links.leaving.items()}
        self._arriving = {pair: Arriving(link) for pair, link in links.arriving.items()}
        self._at = {one.link.place: one for one in self._arriving.values() if not one.link.stays}
        self._arrived: list[tuple[Arriving, Parcel]] = []
        self._heard = np.zeros_like(wire.told)
        self._by_back = {one.link.back: one for one in self._leaving.values() if not one.link.stays}
        # links with something to send and something to tell: most have neither, most of the time
        self._to_send: set[Leaving] = set()
        self._to_tell: set[Arriving] = set()
        self._given: list[Parcel] = []
        self._spare: list[Parcel] = []
        self._lock = threading.RLock()
        self._before = 0
        self.merged, self.counter = 0, Counter()

    def forget(self, puts: int) -> None:
        """Counts anew after ``puts`` puts over every link, of which nothing is under way any more."""
        self._before += puts
        self.merged, self.counter = 0, Counter()

    # --- the computing thread ------------------------------------------------------------------------------

    def put(self, origin: int, to: int, vector: Tensor, stamp: int) -> None:
        """See `hpcopt.comm.ports.Mailbox`."""
        start, one = time.perf_counter(), self._leaving[origin, to]
        assert len(vector) <= len(self._like)
        assert vector.dtype == self._like.dtype
        host = self._staging.to_host(vector)
        with self._lock:
            # one more than there is room for may wait, and meets what comes after it
            full = len(one.waiting) > self._depth - (one.filled - one.free)
            if full:
                one.waiting[-1].meet(host, stamp, self._full)
        if not full:  # only this thread lets a queue grow, so there still is room for it
            parcel = self._parcel()
            parcel.fill(host, one.puts - self._before, stamp)
            one.waiting.append(parcel)
        one.puts += 1
        if one.link.stays:
            self._pass_on(one)
        with self._lock:
            if not one.link.stays:
                self._to_send.add(one)
            self.merged += full
            self.counter.add(start, 0.0, 0.0, vector.nbytes)

    def collect(self) -> list[Mail]:
        """See `hpcopt.comm.ports.Mailbox`."""
        start = time.perf_counter()
        with self._lock:
            arrived, self._arrived = self._arrived, []
            self._spare += self._given
            self._given = [parcel for _, parcel in arrived]
            for one, parcel in arrived:
                one.emptied += 1
                one.collected += int(parcel.header[COUNT])
                if not one.link.stays:
                    self._to_tell.add(one)
        for one in {one for one, _ in arrived if one.link.stays}:
            out = self._leaving[one.link.origin, one.link.to]
            with self._lock:
                out.free, out.collected = max(out.free, one.emptied), one.collected
            self._pass_on(out)
        mail = [self._mail(one.link, parcel) for one, parcel in arrived]
        with self._lock:
            self.counter.seconds += time.perf_counter() - start
        return mail

    def collected(self, origin: int, to: int) -> int:
        """See `hpcopt.comm.ports.Mailbox`."""
        return self._leaving[origin, to].collected - self._before

    def _pass_on(self, one: Leaving) -> None:
        """What stays on this rank need not wait for the thread, which leaves it alone but in a pause."""
        with self._lock:
            while one.waiting and one.filled - one.free < self._depth:
                self._send_one(one)

    # --- the thread that makes the MPI calls ---------------------------------------------------------------

    def turn(self, absorb: bool) -> bool:
        """Moves what can be moved; whether anything was.

        Args:
            absorb: entries are free again as soon as they were read, not only once they were collected.
        """
        received, told = self._receive(), self._tell(absorb)
        return any((received, told, self._send(absorb)))

    def quiet(self) -> bool:
        """Whether nothing waits, all that was sent has been read, and all that was told has been heard."""
        with self._lock:
            read = all(not one.waiting and one.free == one.filled for one in self._leaving.values())
        return read and self._wire.idle()

    def _receive(self) -> bool:
        places = self._wire.arrived()
        for place in places:
            parcel, one = self._parcel(), self._at[place]
            self._wire.read(place, parcel)
            self._take(one, parcel)
        told = self._wire.told.copy()
        for back in np.flatnonzero((told != self._heard).any(1)):
            out = self._by_back[int(back)]
            out.free, out.collected = map(int, told[back])
        self._heard = told
        return bool(places)

    def _take(self, one: Arriving, parcel: Parcel) -> None:
        with self._lock:
            one.read += 1
            self._arrived.append((one, parcel))

    def _tell(self, absorb: bool) -> bool:
        """What became free or was collected."""
        with self._lock:
            links = list(self._arriving.values() if absorb else self._to_tell)
            self._to_tell.clear()
            read = [max(one.told[0], one.read if absorb else one.emptied) for one in links]
            news = list(zip(read, (one.collected for one in links), strict=True))
        told = False
        for one, new in zip(links, news, strict=True):
            if new == one.told:
                continue
            told, one.told = True, new
            if one.link.stays:
                out = self._leaving[one.link.origin, one.link.to]
                out.free, out.collected = new
            else:
                self._wire.tell(one.link, *new)
        return told

    def _send(self, absorb: bool) -> bool:
        with self._lock:
            links, moved = list(self._to_send), False
            if absorb:
                links += [one for one in self._leaving.values() if one.link.stays]
        for one in links:
            while one.waiting and one.filled - one.free < self._depth:
                moved = True
                self._send_one(one)
            with self._lock:
                if not one.waiting:
                    self._to_send.discard(one)
        gone = self._wire.sent()
        with self._lock:
            self._spare += gone
        return moved

    def _send_one(self, one: Leaving) -> None:
        link, travels = one.link, not one.link.stays
        with self._lock:  # from here on nothing can be added to it
            parcel = one.waiting.popleft()
            one.filled += 1
            nbytes = int(parcel.header[BYTES])
            self.counter.bytes += nbytes * travels
            self.counter.bytes_workers += nbytes * (link.origin != link.to)
        if travels:
            self._wire.send(link, parcel)
        else:
            self._take(self._arriving[link.origin, link.to], parcel)

    def _parcel(self) -> Parcel:
        with self._lock:
            if self._spare:
                return self._spare.pop()
        return Parcel(self._like)

    def _mail(self, link: Link, parcel: Parcel) -> Mail:
        number, count, stamp, stamps = (int(parcel.header[k]) for k in (NUMBER, COUNT, STAMP, STAMPS))
        vector = parcel.vector.to(self._like.device)
        return Mail(link.origin, link.to, number, count, stamp, stamps, vector)
