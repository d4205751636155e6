"""Parcels as messages, into receives that are posted before anybody sends: K of them for each link."""

from __future__ import annotations

from collections import deque

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from hpcopt.comm import gather
from hpcopt.comm.mailbox.links import Link, Links
from hpcopt.comm.mailbox.parcel import BYTES, HEADER, TOLD, Bytes, Parcel, pieces


class Messages:
    """A `Wire`. Making and freeing it is collective. Data travel within its calls, whoever makes them.

    Args:
        comm: of the port alone.
        links: all of them.
        depth: K.
        room: bytes of an entry.
    """

    def __init__(self, comm: MPI.Intracomm, links: Links, depth: int, room: int) -> None:
        self._comm, self._answers, self._depth, self._room = comm, comm.Dup(), depth, room
        self.told: NDArray[np.int64] = np.zeros((links.going[comm.rank], TOLD), np.int64)
        self._incoming = [link for link in links.arriving.values() if not link.stays]
        self._incoming.sort(key=lambda link: link.place)
        self._outgoing = [link for link in links.leaving.values() if not link.stays]
        self._outgoing.sort(key=lambda link: link.back)
        self._leaving: deque[tuple[list[MPI.Request], Parcel]] = deque()
        self._telling: deque[MPI.Request] = deque()
        # a ring of entries for each link, each with the requests of its pieces
        self._entries: list[Bytes] = [np.empty((depth, room), np.uint8) for _ in self._incoming]
        self._received = [0] * len(self._incoming)
        self._parts = len(pieces(0, room, gather.MAX_MESSAGE, lambda start, stop: None))
        self._requests = [
            request
            for place in range(len(self._incoming))
            for entry in range(depth)
            for request in self._receive(place, entry)
        ]
        self._missing = np.full((len(self._incoming), depth), self._parts)
        self._heard = np.zeros_like(self.told)
        self._hearing = [self._listen(link.back) for link in self._outgoing]
        comm.Barrier()

    def send(self, link: Link, parcel: Parcel) -> None:
        """Sends a parcel off; it may be used again once `sent` gives it back."""
        used = parcel.used

        def start(begin: int, end: int) -> MPI.Request:
            return self._comm.Isend([used[begin:end], MPI.BYTE], link.target, link.place)

        self._leaving.append((pieces(len(used), self._room, gather.MAX_MESSAGE, start), parcel))

    def sent(self) -> list[Parcel]:
        """Parcels that have left."""
        gone = [parcel for requests, parcel in self._leaving if MPI.Request.Testall(requests)]
        if gone:
            self._leaving = deque(pair for pair in self._leaving if not any(pair[1] is p for p in gone))
        while self._telling and self._telling[0].Test():
            self._telling.popleft()
        return gone

    def arrived(self) -> list[int]:
        """The places of links of which a parcel has arrived; also looks at what was told."""
        for back in MPI.Request.Testsome(self._hearing) or ():
            self.told[back] = self._heard[back]
            self._hearing[back] = self._listen(back)
        for index in MPI.Request.Testsome(self._requests) or ():
            self._missing.flat[index // self._parts] -= 1
        return [
            place
            for place, number in enumerate(self._received)
            if not self._missing[place, number % self._depth]
        ]

    def read(self, place: int, parcel: Parcel) -> None:
        """Copies the next entry of an arrived link, and receives into it again."""
        entry = self._received[place] % self._depth
        landed = self._entries[place][entry]
        parcel.bytes[:HEADER] = landed[:HEADER]
        nbytes = int(parcel.header[BYTES])
        parcel.bytes[HEADER:nbytes] = landed[HEADER:nbytes]
        first = (place * self._depth + entry) * self._parts
        self._requests[first : first + self._parts] = self._receive(place, entry)
        self._missing[place, entry] = self._parts
        self._received[place] += 1

    def tell(self, link: Link, free: int, collected: int) -> None:
        """Tells the source of a link how many of its entries are free again, and its puts collected."""
        # synchronously: once it is complete, its receiver has it
        self._telling.append(self._answers.Issend(np.array([free, collected]), link.source, link.back))

    def idle(self) -> bool:
        """Whether all that was sent and told has arrived."""
        return not self._leaving and not self._telling

    def free(self) -> None:
        """Takes the receives back. Collective, where all are idle."""
        for request in [*self._requests, *self._hearing]:
            request.Cancel()
            request.Wait()
        self._answers.Free()

    def _receive(self, place: int, entry: int) -> list[MPI.Request]:
        link, landing = self._incoming[place], self._entries[place][entry]
        return pieces(
            self._room,
            self._room,
            gather.MAX_MESSAGE,
            lambda start, stop: self._comm.Irecv([landing[start:stop], MPI.BYTE], link.source, place),
        )

    def _listen(self, back: int) -> MPI.Request:
        return self._answers.Irecv(self._heard[back], self._outgoing[back].target, back)
