"""`tools/bench onesided`: puts to a target that computes, what they cost it, and their bandwidth.

    mpirun -n 2 python -m mpi4py onesided.py [RATE]

Rank 1 multiplies matrices for 2 s, and between two products takes what has arrived; its computing thread
makes no MPI call in that time. Rank 0 puts a vector every 10 ms, and looks how long it takes until it was
taken, as rank 1 sees it (both have one clock: hosts are namespaces of one machine), and until rank 0 knows.
Both agree all the time on how much was made. The same products without a mailbox: what it costs the target.

Then 4 MB again and again against a bare Put and Flush into an allocated window of a target that waits within
MPI: what the port's windows do of it (a put, and what makes it safe to read), and from `put` until the last
was taken, K under way, with the copies into and out of host memory that let the computing threads go on.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from mpi4py import MPI

from hpcopt.comm.mailbox.choice import WIRES
from hpcopt.comm.mailbox.links import Links
from hpcopt.comm.mailbox.mpi_mailbox import MPIMailbox
from hpcopt.comm.mailbox.parcel import Parcel, room
from hpcopt.comm.mailbox.windows import Windows
from hpcopt.comm.ports import Transport
from hpcopt.comm.staging import Staging
from hpcopt.ground.placement import Placement
from tools.benches.common import hosts, in_turn, ratios, spread

ORIGIN, TARGET = range(2)
LINKS = [(ORIGIN, TARGET), (TARGET, ORIGIN)]
SIDE = 300
"""of the matrices"""
SECONDS, EVERY, LOOK = 2.0, 0.01, 2e-4
SMALL, LARGE = 7850, 1_000_000
"""float32: logistic regression on Fashion-MNIST; 4 MB"""
IN_A_ROW, DEPTH, REPEATS = 50, 4, 5


def opened(comm: MPI.Intracomm, transport: Transport, size: int) -> MPIMailbox:
    """A mailbox of one worker on each rank. Collective."""
    placement, like = Placement.even(comm.size, comm.size, comm.rank), torch.zeros(size)
    return MPIMailbox(comm, placement, Staging(like.device), like, LINKS, DEPTH, transport)


def wait(comm: MPI.Comm) -> None:
    """A barrier in which ranks sleep."""
    everybody = comm.Ibarrier()
    while not everybody.Test():
        time.sleep(0.005)


class Work:
    """Products of matrices, as many as take about `SECONDS`."""

    def __init__(self) -> None:
        self._a, self._out = torch.randn(SIDE, SIDE), torch.empty(SIDE, SIDE)
        self._count = 200
        self(lambda: None)
        self._count = round(self._count * SECONDS / self(lambda: None))

    def __call__(self, between: Callable[[], None]) -> float:
        """Seconds of all of them, with something between any two."""
        start = time.perf_counter()
        for _ in range(self._count):
            torch.mm(self._a, self._a, out=self._out)
            between()
        return time.perf_counter() - start


class Puts:
    """What one transport does while the target computes.

    Args:
        comm: two ranks; collective.
        transport: which.
        work: the target's.

    Attributes:
        compute, plain: of each repeat, seconds of the work with and without.
        taken, known: of each repeat, the median of the milliseconds from a put until the target had it, and
            until the origin knew.
        busy: of each repeat, the thread's CPU time by the time that passed, on both ranks.
    """

    def __init__(self, comm: MPI.Intracomm, transport: Transport, work: Work) -> None:
        self._comm, self._work, self._made, self._puts = comm, work, 0, 0
        self._port, self._vector = opened(comm, transport, SMALL), torch.randn(SMALL)
        self.compute: list[float] = []
        self.plain: list[float] = []
        self.taken: list[float] = []
        self.known: list[float] = []
        self.busy: list[list[float]] = []

    def without(self) -> None:
        """The work alone. Collective."""
        wait(self._comm)
        seconds = self._work(lambda: None) if self._comm.rank == TARGET else 0.0
        wait(self._comm)
        self.plain.append(self._comm.bcast(seconds, TARGET))

    def repeat(self) -> None:
        """The work with puts. Collective."""
        comm, port = self._comm, self._port
        wait(comm)
        busy, start = port.busy, time.perf_counter()
        seconds, times = (0.0, self._origin()) if comm.rank == ORIGIN else self._target()
        port.pause()
        share = (port.busy - busy) / (time.perf_counter() - start)
        port.collect()
        middle = 1e3 * statistics.median(times)
        found = comm.allgather((seconds, middle, share))
        self.compute.append(found[TARGET][0])
        self.taken.append(found[TARGET][1])
        self.known.append(found[ORIGIN][1])
        self.busy.append([share for *_, share in found])

    def _target(self) -> tuple[float, list[float]]:
        """Computes and takes; then tells that it is over."""
        port, times = self._port, list[float]()

        def take() -> None:
            now = time.perf_counter_ns()
            times.extend(1e-9 * (now - mail.stamp) for mail in port.collect())
            self._made += 1
            port.agree(self._made, self._made)

        seconds = self._work(take)
        port.put(TARGET, ORIGIN, self._vector, 0)
        return seconds, times

    def _origin(self) -> list[float]:
        """Puts until the target's work is over."""
        port, times = self._port, list[float]()
        while not port.collect():
            start = time.perf_counter()
            port.put(ORIGIN, TARGET, self._vector, time.perf_counter_ns())
            self._puts += 1
            while port.collected(ORIGIN, TARGET) < self._puts:
                if time.perf_counter() - start > SECONDS:  # it has ended its work before
                    return times
                time.sleep(LOOK)
            times.append(time.perf_counter() - start)
            port.agree(self._made, self._made)
            time.sleep(max(0.0, start + EVERY - time.perf_counter()))
        return times

    def __str__(self) -> str:
        origin, target = ([pair[rank] for pair in self.busy] for rank in (ORIGIN, TARGET))
        return (
            f"taken after {spread(self.taken, 2)} ms, known after {spread(self.known, 2)} ms; work / without "
            f"a mailbox {ratios(self.compute, self.plain)}; thread / core: origin {spread(origin)}, "
            f"target {spread(target)}"
        )

    def free(self) -> None:
        """Collective."""
        self._port.free()


class Stream:
    """Long vectors through a mailbox. Collective; so is each call."""

    def __init__(self, comm: MPI.Intracomm, transport: Transport) -> None:
        self._comm, self._port, self._vector = comm, opened(comm, transport, LARGE), torch.randn(LARGE)
        self._puts = 0

    def __call__(self) -> None:
        """Nothing is merged: the origin waits for room."""
        port, first = self._port, self._puts
        self._puts += IN_A_ROW
        if self._comm.rank == ORIGIN:
            for number in range(first, self._puts):
                while number - port.collected(ORIGIN, TARGET) >= DEPTH:
                    time.sleep(LOOK / 4)
                port.put(ORIGIN, TARGET, self._vector, number)
        else:
            taken = first
            while taken < self._puts:
                taken += sum(mail.count for mail in port.collect())
                time.sleep(LOOK / 4)
        port.pause()
        port.collect()

    def free(self) -> None:
        """Collective."""
        self._port.free()


class Sent:
    """Long vectors that the windows carry, and nobody takes. Collective; so is each call."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        links, like = Links(LINKS, Placement.even(comm.size, comm.size, comm.rank)), torch.randn(LARGE)
        self._comm, self._wire = comm, Windows(comm.Dup(), links, DEPTH, room(like))
        self._link, self._parcel = next(iter(links.leaving.values())), Parcel(like)
        self._parcel.fill(like, 0, 0)

    def __call__(self) -> None:
        """The target helps, where it has to."""
        if self._comm.rank == ORIGIN:
            for _ in range(IN_A_ROW):
                self._wire.send(self._link, self._parcel)
                self._wire.sent()
        self._comm.Barrier()

    def free(self) -> None:
        """Collective."""
        self._wire.free()


class Bare:
    """Put and Flush, and nothing else. Collective; so is each call."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm, self._vector = comm, np.ones(LARGE, np.float32)
        self._window = MPI.Win.Allocate(self._vector.nbytes, 4, comm=comm)
        self._window.Lock_all(MPI.MODE_NOCHECK)

    def __call__(self) -> None:
        """The target helps, where it has to."""
        if self._comm.rank == ORIGIN:
            for _ in range(IN_A_ROW):
                self._window.Put(self._vector, TARGET)
                self._window.Flush(TARGET)
        self._comm.Barrier()

    def free(self) -> None:
        """Collective."""
        self._window.Unlock_all()
        self._window.Free()


def main() -> None:
    """Prints medians with spread."""
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    if comm.size != 2:
        sys.exit("2 ranks, please")
    work, count = Work(), hosts(comm)
    puts = {transport: Puts(comm, transport, work) for transport in WIRES}
    for repeat in range(REPEATS):
        turns = [call for one in puts.values() for call in (one.without, one.repeat)]
        for call in turns if repeat % 2 else reversed(turns):
            call()
    if comm.rank == 0:
        print(f"{count} host{'s' * (count > 1)}, {' '.join(sys.argv[1:])}, medians of {REPEATS} [min, max]")
        for transport, found in puts.items():
            print(f"  {transport:9} {found}", flush=True)
    streams: dict[str, Stream | Sent | Bare] = {"Put+Flush": Bare(comm), "sent by windows": Sent(comm)}
    streams |= {f"taken by {transport}": Stream(comm, transport) for transport in WIRES}
    times = in_turn(comm, streams, REPEATS)
    if comm.rank == 0:
        for name, seconds in times.items():
            rates = [4e-9 * LARGE * IN_A_ROW / one for one in seconds]
            beside = ratios(times["Put+Flush"], seconds)
            print(f"  {name:17} 4 MB: {spread(rates, 2)} GB/s, of the bare one {beside}", flush=True)
    for one in (*puts.values(), *streams.values()):
        one.free()


if __name__ == "__main__":
    main()
