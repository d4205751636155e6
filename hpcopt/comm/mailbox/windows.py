"""Parcels through MPI windows: they lie in the target's memory once they were put, whatever it does.

A window has a ring of K entries for each link, a version for each entry, and for each link that leaves what
the target has told. A parcel is put, then the window is flushed, then its version is set, so that an entry
whose version is the next one is complete; it is written again only once the target has told that it is free.
Only allocated windows: a created one's target would have to help.
"""

from __future__ import annotations

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from hpcopt.comm import gather
from hpcopt.comm.mailbox.links import Link, Links
from hpcopt.comm.mailbox.parcel import BYTES, HEADER, TOLD, Bytes, Parcel, pieces

WORD = 8


class Windows:
    """A `Wire`. Making and freeing it is collective, everything else one-sided.

    Args:
        comm: of the port alone.
        links: all of them.
        depth: K.
        room: bytes of an entry.
    """

    def __init__(self, comm: MPI.Intracomm, links: Links, depth: int, room: int) -> None:
        self._links, self._depth, self._room = links, depth, room
        self._here, reaching, going = comm.rank, links.reaching[comm.rank], links.going[comm.rank]
        self._sent = np.zeros(going, np.int64)
        self._received = np.zeros(reaching, np.int64)
        self._gone: list[Parcel] = []
        self._each = np.arange(reaching)
        size = self._entry(self._here, reaching, 0)
        self._win = MPI.Win.Allocate(max(size, WORD), 1, comm=comm)
        self._memory: Bytes = np.frombuffer(self._win.tomemory(), np.uint8)  # type: ignore[call-overload]
        words = self._memory[: self._entry(self._here, 0, 0)].view(np.int64)
        words[:] = 0
        self._versions: NDArray[np.int64] = words[: reaching * depth].reshape(reaching, depth)
        self.told: NDArray[np.int64] = words[reaching * depth :][: going * TOLD].reshape(going, TOLD)
        self._win.Lock_all(MPI.MODE_NOCHECK)
        self._win.Sync()
        comm.Barrier()

    def send(self, link: Link, parcel: Parcel) -> None:
        """Puts a parcel into the next entry, which is free; it is there once this returns."""
        number, used, target = int(self._sent[link.back]), parcel.used, link.target
        place = self._entry(target, link.place, number % self._depth)

        def put(start: int, stop: int) -> None:
            self._win.Put([used[start:stop], MPI.BYTE], target, [place + start, stop - start, MPI.BYTE])

        pieces(len(used), len(used), gather.MAX_MESSAGE, put)
        self._win.Flush(target)  # all of it is there before anybody can see that it is
        version = np.array([number + 1])
        self._set(version, target, (link.place * self._depth + number % self._depth) * WORD)
        self._sent[link.back] += 1
        self._gone.append(parcel)

    def sent(self) -> list[Parcel]:
        """Parcels that have left."""
        gone, self._gone = self._gone, []
        return gone

    def arrived(self) -> list[int]:
        """The places of links at which a parcel lies; also looks at what was told."""
        self._win.Sync()
        now = self._versions[self._each, self._received % self._depth]
        return [int(place) for place in np.flatnonzero(now == self._received + 1)]

    def read(self, place: int, parcel: Parcel) -> None:
        """Copies the next entry of an arrived link."""
        entry = int(self._received[place]) % self._depth
        start = self._entry(self._here, place, entry)
        parcel.bytes[:HEADER] = self._memory[start : start + HEADER]
        nbytes = int(parcel.header[BYTES])
        parcel.bytes[HEADER:nbytes] = self._memory[start + HEADER : start + nbytes]
        self._win.Sync()
        if self._versions[place, entry] != self._received[place] + 1:
            raise RuntimeError("an entry of a mailbox was overwritten while it was read")
        self._received[place] += 1

    def tell(self, link: Link, free: int, collected: int) -> None:
        """Tells the source of a link how many of its entries are free again, and its puts collected."""
        place = (self._links.reaching[link.source] * self._depth + link.back * TOLD) * WORD
        self._set(np.array([free, collected]), link.source, place)

    def idle(self) -> bool:
        """Whether all that was sent and told is where it should be: always."""
        return True

    def free(self) -> None:
        """Frees the window. Collective."""
        self._win.Unlock_all()
        del self._memory, self._versions, self.told
        self._win.Free()

    def _set(self, values: NDArray[np.int64], rank: int, place: int) -> None:
        self._win.Accumulate(values, rank, [place, len(values), MPI.INT64_T], MPI.REPLACE)
        self._win.Flush(rank)

    def _entry(self, rank: int, place: int, entry: int) -> int:
        """Where an entry begins in a rank's window, in bytes; versions and what was told lie before."""
        words = self._links.reaching[rank] * self._depth + self._links.going[rank] * TOLD
        return -(-words * WORD // 64) * 64 + (place * self._depth + entry) * self._room
